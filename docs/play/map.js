/* The neurons: a small picture of each block, and one block at a time so large that a finger hits a neuron. */
"use strict";

const SIDE = 32; // neurons in a row of the map

function hexOf(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/** Colours of the theme as it is now: a neuron's by its place in the order (0 goes first, 1 last), and what is gone. */
function palette() {
  const first = hexOf("--goes-first"), last = hexOf("--goes-last");
  const mix = (share) => `rgb(${first.map((value, i) => Math.round(value + share * (last[i] - value)))})`;
  const [gone, mark] = ["--surface", "--cut"].map((name) => `rgb(${hexOf(name)})`);
  return { of: (share) => mix(Math.round(4 * share) / 4), gone, mark };
}

/** Draw one block: `gone` and each neuron's place in the order, from 0 to 1, [width] each. */
function drawBlock(canvas, gone, places, colours) {
  const cell = 10, pen = canvas.getContext("2d");
  canvas.width = canvas.height = SIDE * cell;
  gone.forEach((out, neuron) => {
    const x = (neuron % SIDE) * cell, y = Math.floor(neuron / SIDE) * cell;
    pen.fillStyle = out ? colours.gone : colours.of(places[neuron]);
    pen.fillRect(x, y, cell, cell);
    if (!out) return;
    pen.fillStyle = colours.mark;
    pen.fillRect(x + 3, y + 3, 4, 4);
  });
}

/** A grid of cells that is walked with the arrow keys; `toggle(neuron)` is called by a click, Space or Enter. */
class LargeMap {
  constructor(grid, width, toggle) {
    this.cells = [...Array(width).keys()].map((neuron) => {
      const cell = document.createElement("div");
      cell.role = "gridcell";
      cell.tabIndex = neuron ? -1 : 0;
      cell.addEventListener("click", () => { this.focus(neuron); toggle(neuron); });
      return cell;
    });
    for (let first = 0; first < width; first += SIDE) {
      const row = document.createElement("div");
      row.role = "row";
      row.append(...this.cells.slice(first, first + SIDE));
      grid.append(row);
    }
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -SIDE, ArrowDown: SIDE, Home: -width, End: width };
    grid.addEventListener("keydown", (event) => {
      const at = this.cells.indexOf(document.activeElement);
      if (event.key === " " || event.key === "Enter") toggle(at);
      else if (steps[event.key]) this.focus(Math.min(Math.max(at + steps[event.key], 0), width - 1));
      else return;
      event.preventDefault();
    });
  }

  focus(neuron) {
    this.cells.forEach((cell, index) => { cell.tabIndex = index === neuron ? 0 : -1; });
    this.cells[neuron].focus();
  }

  draw(gone, places, colours) {
    this.cells.forEach((cell, neuron) => {
      cell.className = gone[neuron] ? "gone" : "";
      cell.style.backgroundColor = gone[neuron] ? "" : colours.of(places[neuron]);
      cell.ariaLabel = `Neuron ${neuron}, ${gone[neuron] ? "gone" : "in place"}`;
    });
  }
}
