/* One line of perplexities, drawn: the whole model, this cut, nineteen random cuts, and guessing. */
"use strict";

/** An element of a drawing, with its attributes and its text. */
function drawn(name, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

/** Draw nats (of the whole model, the cut if known, random cuts, guessing) into an svg on a logarithmic axis. */
function drawChart(svg, { whole, cut, random, guessing }) {
  const width = svg.clientWidth || 320, edge = 12, axis = 74;
  const shown = [whole, ...random, ...(cut === undefined ? [] : [cut])], reach = 1.1 * (Math.max(...shown) - whole);
  const far = [0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 10].find((step) => step > reach) ?? reach; // it jumps, rather than creeps
  const low = Math.min(...shown) - 0.04 * far, high = whole + far;
  const x = (nats) => edge + ((width - 2 * edge) * (nats - low)) / (high - low);
  const upright = (at, top, kind) => drawn("line", { x1: at, x2: at, y1: top, y2: axis, class: kind });
  const label = (at, y, kind, text) => {
    const anchor = at < 60 ? "start" : at > width - 60 ? "end" : "middle";
    return drawn("text", { x: Math.min(Math.max(at, 2), width - 2), y, class: kind, "text-anchor": anchor }, text);
  };
  const parts = [drawn("line", { x1: 0, x2: width, y1: axis, y2: axis, class: "axis" })];

  const ticks = [1, 10, 100, 1e3, 1e4, 1e5, 1e6].flatMap((power) => [power, 2 * power, 5 * power]);
  let last = -Infinity;
  for (const tick of ticks) {
    const at = x(Math.log(tick));
    if (at < edge || at > width - edge || at < last + 56) continue;
    last = at;
    parts.push(drawn("path", { d: `M${at} ${axis}v4`, class: "axis" }), label(at, axis + 18, "tick", short(tick)));
  }
  if (guessing < high) parts.push(upright(x(guessing), 16, "guessing"), label(x(guessing), 11, "guessing", "guessing"));
  else parts.push(label(width, 11, "guessing", "guessing →"));
  parts.push(upright(x(whole), 16, "whole"), label(x(whole), 11, "whole", "whole model"));

  const lanes = []; // dots that would overlap stand above each other
  for (const at of random.map(x).sort((a, b) => a - b)) {
    const free = lanes.findIndex((end) => at - end > 8), lane = free < 0 ? lanes.length : free;
    lanes[lane] = at;
    parts.push(drawn("circle", { cx: at, cy: axis - 6 - 7 * Math.min(lane, 4), r: 3.5, class: "random" }));
  }
  if (cut !== undefined) {
    const diamond = drawn("path", { d: `M${x(cut)} 38l8 10l-8 10l-8-10z`, class: "cut" });
    parts.push(diamond, label(x(cut), 32, "cut", "this cut"));
  }
  svg.setAttribute("viewBox", `0 0 ${width} 96`);
  svg.replaceChildren(...parts);
}

/** A perplexity with three digits, and with all of them before the point. */
function short(number) {
  if (number >= 1e7) return number.toExponential(0).replace("e+", "e");
  return Number(number < 1000 ? number.toPrecision(3) : number.toFixed()).toLocaleString("en");
}
