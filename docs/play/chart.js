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
  const width = svg.clientWidth || 320, edge = 12, middle = 52;
  const seen = [whole, ...random, ...(cut === undefined ? [] : [cut])];
  const reach = Math.max(...seen) - whole, far = [0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 10, 20].find((step) => step > 1.1 * reach);
  const low = Math.min(...seen) - 0.04 * far, high = whole + (far ?? 1.1 * reach);
  const x = (nats) => edge + ((width - 2 * edge) * (nats - low)) / (high - low);
  const label = (at, y, kind, text) => {
    const anchor = at < 70 ? "start" : at > width - 70 ? "end" : "middle";
    return drawn("text", { x: anchor === "start" ? Math.max(at - 6, 2) : anchor === "end" ? Math.min(at + 6, width - 2) : at, y, class: kind, "text-anchor": anchor }, text);
  };
  const parts = [drawn("line", { x1: 0, x2: width, y1: 74, y2: 74, class: "axis" })];

  let last = -Infinity;
  for (let power = 1; power < 1e12; power *= 10) {
    for (const tick of [power, 2 * power, 5 * power]) {
      const at = x(Math.log(tick));
      if (at < edge || at > width - edge || at < last + 34) continue;
      last = at;
      parts.push(drawn("line", { x1: at, x2: at, y1: 74, y2: 78, class: "axis" }), label(at, 92, "tick", short(tick)));
    }
  }
  if (guessing < high) parts.push(drawn("line", { x1: x(guessing), x2: x(guessing), y1: 30, y2: 74, class: "guessing" }), label(x(guessing), 26, "guessing", "guessing"));
  parts.push(drawn("line", { x1: x(whole), x2: x(whole), y1: 16, y2: 74, class: "whole" }), label(x(whole), 11, "whole", "whole model"));

  const lanes = []; // dots that would overlap stand above each other
  for (const at of random.map(x).sort((a, b) => a - b)) {
    let lane = lanes.findIndex((end) => at - end > 8);
    if (lane < 0) lane = lanes.push(at) - 1;
    lanes[lane] = at;
    parts.push(drawn("circle", { cx: at, cy: 68 - 7 * Math.min(lane, 4), r: 3.5, class: "random" }));
  }
  if (cut !== undefined) {
    const at = x(cut);
    parts.push(drawn("path", { d: `M${at} ${middle - 14}l8 10l-8 10l-8-10z`, class: "cut" }), label(at, middle - 19, "cut", "this cut"));
  }
  svg.setAttribute("viewBox", `0 0 ${width} 96`);
  svg.replaceChildren(...parts);
}

/** A perplexity with three digits, as short as can be. */
function short(number) {
  if (!(number < 1e7)) return number < Infinity ? number.toExponential(0).replace("e+", "e") : "∞";
  return Number(number.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 1 });
}
