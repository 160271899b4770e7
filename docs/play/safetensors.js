/* Tensors from a safetensors file: the length of its header, the header as JSON, then all numbers. */
"use strict";

/** All float16 numbers there are: a sign, five bits of exponent, ten of fraction. */
const halfTable = Float32Array.from({ length: 1 << 16 }, (_, half) => {
  const exponent = (half >> 10) & 31, fraction = (half & 1023) / 1024;
  return (half >> 15 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
});

function fromHalf(halves) {
  const numbers = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) numbers[i] = halfTable[halves[i]];
  return numbers;
}

/** {name: numbers}, each tensor flat, float16 as float32. */
function readSafetensors(file) {
  const length = Number(new DataView(file).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(file, 8, length)));
  const kinds = { F16: Uint16Array, F32: Float32Array, I16: Int16Array };
  const names = Object.keys(header).filter((name) => name !== "__metadata__");
  return Object.fromEntries(names.map((name) => {
    const [begin, end] = header[name].data_offsets;
    const numbers = new kinds[header[name].dtype](file.slice(8 + length + begin, 8 + length + end));
    return [name, header[name].dtype === "F16" ? fromHalf(numbers) : numbers];
  }));
}
