/* Figures to move through: controls, a drawing, and a sentence with the numbers. Python wrote all numbers and sentences
   into the page. Without this script, and in print, the lesson's own picture stands there. */
"use strict";

{
  const HEIGHT = 360, LEFT = 62, RIGHT = 14, TOP = 10, BOTTOM = 64, MARKER = 10; // pixels

  const drawn = (name, attributes, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };

  const written = (name, properties, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  const begins = (whole, part) => part.every((value, place) => value === whole[place]);

  /** A function from a number to its place between two pixels. */
  const scale = ({ log, span }, from, to) => {
    const plain = log ? Math.log : Number, [low, high] = span.map(plain);
    return (value) => from + ((plain(value) - low) / (high - low)) * (to - from);
  };

  /** Several lines of text below each other. */
  const label = (text, x, y, anchor) => drawn("text", { x, y, "text-anchor": anchor },
    ...text.split("\n").map((line, i) => drawn("tspan", { x, dy: i ? "1.15em" : 0 }, line)));

  const marker = ({ colour, outline }, x, y, size) => {
    const element = drawn("path", { d: outline, class: "mark", "stroke-width": 1.5, transform: `translate(${x} ${y}) scale(${size} ${-size})` });
    element.style.setProperty("--mark", colour);
    return element;
  };

  /** A line of the arm's colour; dashed where the arm has no marker, so that nothing was measured. */
  const stroke = ({ colour, outline }, points, width = 2) => {
    const d = points.map(([x, y], i) => `${i ? "L" : "M"}${x} ${y}`).join("");
    const dashes = outline ? "none" : "2 4";
    const element = drawn("path", { d, class: "mark stroke", "stroke-width": width, "stroke-dasharray": dashes });
    element.style.setProperty("--mark", colour);
    return element;
  };

  /** The drawing of one scene, in which one point stands out with its interval. */
  function drawing({ x, y, points, lines, looks, scenes }, chosen, width) {
    const bottom = HEIGHT - BOTTOM;
    const across = scale(x, LEFT, width - RIGHT), up = scale(y, bottom, TOP);
    const scene = (part) => begins(chosen.chosen, part.chosen.slice(0, scenes));
    const parts = [];
    for (const [at, text] of y.ticks) {
      parts.push(drawn("path", { d: `M${LEFT} ${up(at)}H${width - RIGHT}`, class: "grid" }));
      parts.push(label(text, LEFT - 6, up(at) + 4, "end"));
    }
    let free = -Infinity; // labels that would touch are left out
    for (const [at, text] of x.ticks) {
      const half = 3.1 * Math.max(...text.split("\n").map((line) => line.length));
      if (across(at) - half < free) continue;
      free = across(at) + half;
      parts.push(label(text, across(at), bottom + 18, "middle"));
    }
    parts.push(label(x.label, (LEFT + width) / 2, HEIGHT - 8, "middle"));
    parts.push(drawn("g", { transform: `translate(13 ${(TOP + bottom) / 2}) rotate(-90)` }, label(y.label, 0, 0, "middle")));
    for (const line of lines.filter(scene)) {
      const places = line.places.map(([a, b]) => [across(a), up(b)]);
      parts.push(stroke(looks[line.name], places));
    }
    for (const point of points.filter(scene)) {
      if (point.foot === null) continue;
      const bar = (top) => stroke(looks[point.name], [[across(point.x), bottom], [across(point.x), up(top)]], 3 * MARKER);
      parts.push(drawn("g", { opacity: 0.3 }, bar(point.y)), bar(point.foot));
    }
    for (const point of points.filter(scene)) {
      if (point !== chosen) parts.push(drawn("g", { opacity: 0.65 }, marker(looks[point.name], across(point.x), up(point.y), MARKER)));
    }
    const at = across(chosen.x), look = looks[chosen.name], [low, high] = [up(chosen.low), up(chosen.high)];
    parts.push(marker(look, at, up(chosen.y), MARKER));
    parts.push(drawn("circle", { cx: at, cy: up(chosen.y), r: 0.9 * MARKER, class: "ring" }));
    parts.push(interval(at, low, high));
    return drawn("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" }, ...parts);
  }

  /** An interval from one height to another. */
  const interval = (at, low, high) => {
    const caps = [low, high].map((end) => `M${at - 14} ${end}h28`).join("");
    return drawn("path", { d: `M${at} ${low}V${high}${caps}`, class: "interval" });
  };

  /** Names beside their marks, of what the scene has. */
  function key({ points, lines, looks, scenes, interval: meaning }, chosen) {
    const here = [...points, ...lines].filter((part) => begins(chosen.chosen, part.chosen.slice(0, scenes)));
    const names = [...new Set(here.map((part) => part.name))];
    const entry = (sign, name) =>
      written("li", {}, drawn("svg", { width: 28, height: 14, "aria-hidden": "true" }, sign), name);
    const entries = names.map((name) => {
      const look = looks[name];
      return entry(look.outline ? marker(look, 14, 7, MARKER) : stroke(look, [[0, 7], [28, 7]]), name);
    });
    return written("ul", { className: "key" }, ...entries, entry(interval(14, 1, 13), meaning));
  }

  function explore(host) {
    const figure = JSON.parse(host.querySelector("script").textContent);
    const { controls, points } = figure;
    const state = [...points[figure.begin].chosen];
    const said = written("p", { className: "says" }), frame = written("div", {});
    said.setAttribute("role", "status");
    const printed = host.previousElementSibling?.querySelector(".cell_output");
    const alt = printed?.querySelector("img")?.alt ?? "";
    printed?.classList.add("printed");

    const fields = controls.map(({ label, kind, values }, place) => {
      const input = kind === "slide"
        ? written("input", { type: "range", min: 0, step: 1 })
        : written("select", {}, ...values.map((value, i) => new Option(value, i)));
      const value = written("span", { className: "value" });
      value.setAttribute("aria-hidden", "true"); // the slider says it
      const field = written("div", {}, written("label", {}, written("span", {}, label), input), kind === "slide" ? value : "");
      input.addEventListener("input", () => {
        state[place] = kind === "slide" ? offered(place)[input.value] : Number(input.value);
        show();
      });
      return { field, input, value };
    });

    /** What a control can be, the ones before it being as they are. */
    const offered = (place) => {
      const left = points.filter((point) => begins(point.chosen, state.slice(0, place)));
      return [...new Set(left.map((point) => point.chosen[place]))].sort((a, b) => a - b);
    };

    const settle = (place) => {
      const { field, input, value } = fields[place], { kind, values } = controls[place], may = offered(place);
      if (!may.includes(state[place])) state[place] = may[0];
      field.hidden = may.length < 2;
      if (kind === "slide") {
        input.max = may.length - 1;
        input.value = may.indexOf(state[place]);
        input.setAttribute("aria-valuetext", values[state[place]]);
        value.textContent = values[state[place]];
      } else {
        [...input.options].forEach((option, i) => { option.hidden = option.disabled = !may.includes(i); });
        input.value = state[place];
      }
    };

    const show = () => {
      controls.forEach((_, place) => settle(place));
      const chosen = points.find((point) => begins(point.chosen, state));
      const picture = drawing(figure, chosen, Math.min(760, frame.clientWidth));
      picture.setAttribute("aria-label", alt);
      frame.replaceChildren(picture, key(figure, chosen));
      said.textContent = chosen.says;
    };

    host.append(written("form", {}, ...fields.map(({ field }) => field)), said, frame);
    host.hidden = false;
    show();
    window.addEventListener("resize", show);
  }

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".explorable").forEach(explore));
}
