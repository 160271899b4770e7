/* Size, cache and speed from counted bytes and a machine's bandwidth, by lesson 10's formulae. Nothing is sent or kept. */
"use strict";

{
  const BYTES_IN_CACHE = 2; // of a number: 16 bits

  /** All results, from the fields in their units. */
  function results(v) {
    const bytes = (millions) => (1e6 * millions * v.bits) / 8;
    const weights = bytes(v.parameters);
    const cacheOfToken = 2 * (v.layers - v.removed) * v.kvHeads * v.headSize * BYTES_IN_CACHE; // keys and values
    const cache = v.requests * v.context * cacheOfToken;
    const reading = (bytes(v.parameters - v.lookedUp) + cache) / (1e9 * v.bandwidth);
    const computing = (2 * 1e6 * (v.parameters - v.lookedUp) * v.requests) / (1e9 * v.peak);
    const seconds = (v.layers * v.price) / 1000 + Math.max(reading, computing);
    return {
      weights: weights / 1e6,
      cacheOfToken: cacheOfToken / 1e3,
      cache: cache / 1e6,
      held: (weights + cache) / 1e6,
      milliseconds: 1000 * seconds,
      tokensPerSecond: v.requests / seconds,
      fitting: Math.max(0, Math.floor((1e9 * v.memory - weights) / (v.context * cacheOfToken))),
    };
  }

  function calculate(form) {
    const presets = JSON.parse(form.querySelector("script").textContent);
    const numbers = [...form.querySelectorAll("input")], model = form.elements.model;
    const show = () => {
      const found = results(Object.fromEntries(numbers.map((input) => [input.name, input.valueAsNumber])));
      const valid = form.checkValidity();
      for (const [name, value] of Object.entries(found)) {
        const place = form.querySelector(`#result-${name}`), known = valid && Number.isFinite(value);
        place.value = known ? value : "";
        place.textContent = known ? value.toLocaleString("en-GB", { maximumSignificantDigits: 4 }) : "–";
      }
    };
    const fill = () => {
      for (const [name, value] of Object.entries(presets[model.value] ?? {})) form.elements[name].value = value;
      show();
    };
    model.addEventListener("change", fill);
    for (const input of numbers) {
      input.addEventListener("input", () => {
        if (input.name in Object.values(presets)[0]) model.value = "";
        show();
      });
    }
    form.addEventListener("submit", (event) => event.preventDefault()); // Enter in a field
    form.hidden = false;
    fill();
  }

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("form.calculator").forEach(calculate));
}
