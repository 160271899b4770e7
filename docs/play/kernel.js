/* Products of matrices, the work of a language model: a WebAssembly kernel written byte by byte, or plain JavaScript.

A matrix [inner, columns] that is multiplied with lies in panels of 8 columns, one panel behind the other, so that a
product reads it straight through. A kernel multiplies some rows of `a` with one panel:

  c[row, column] = bias[column] + sum over i of a[row, i] * panel[i, column]

It is called with addresses in bytes (a, panel, bias, c, the end of c) and sizes in bytes (of a row of c, and of a). */
"use strict";

const PANEL = 8; // columns: two vectors of four numbers
const TILE = 4; // rows that share what was loaded of a panel
const TIMES_PLUS = [ // x * y + z: f32x4.relaxed_madd, or where that is unknown f32x4.mul and f32x4.add
  (x, y, z) => [...x, ...y, ...z, 0xfd, 0x85, 2],
  (x, y, z) => [...x, ...y, 0xfd, 0xe6, 1, ...z, 0xfd, 0xe4, 1],
];

/** Copy a matrix [inner, columns] into panels; `at(i, column)` reads it. What is missing of the last one is 0. */
function fillPanels(panels, inner, columns, at) {
  let place = 0;
  for (let first = 0; first < columns; first += PANEL) {
    for (let i = 0; i < inner; i++) {
      for (let column = first; column < first + PANEL; column++) panels[place++] = column < columns ? at(i, column) : 0;
    }
  }
}

/** Where in its panels a matrix of this inner size has a cell. */
const cell = (i, column, inner) => ((column >> 3) * inner + i) * PANEL + (column & 7);

/** Memory that a kernel can work on: {buffer}. */
function makeMemory(bytes) {
  const initial = Math.ceil(bytes / 65536); // pages
  return typeof WebAssembly === "object"
    ? new WebAssembly.Memory({ initial, maximum: initial })
    : { buffer: new ArrayBuffer(initial * 65536) };
}

/** Two kernels on a memory: `tile` for TILE rows at a time, `row` for single ones. */
function makeKernels(memory) {
  for (const timesPlus of TIMES_PLUS) {
    try {
      const module = new WebAssembly.Module(kernelBytes(memory.buffer.byteLength, timesPlus));
      return new WebAssembly.Instance(module, { page: { memory } }).exports;
    } catch { /* no WebAssembly here, no vectors in it, or no such instruction */ }
  }
  const kernel = plainKernel(new Float32Array(memory.buffer));
  return { tile: kernel, row: kernel };
}

/** The same in JavaScript. */
function plainKernel(numbers) {
  return (a, panel, bias, c, end, rowOfC, rowOfA) => {
    const inner = rowOfA >> 2, b = bias >> 2;
    for (let x = a >> 2, out = c >> 2; out < end >> 2; x += inner, out += rowOfC >> 2) {
      let s0 = numbers[b], s1 = numbers[b + 1], s2 = numbers[b + 2], s3 = numbers[b + 3];
      let s4 = numbers[b + 4], s5 = numbers[b + 5], s6 = numbers[b + 6], s7 = numbers[b + 7];
      for (let i = x, w = panel >> 2; i < x + inner; i++, w += PANEL) {
        const value = numbers[i];
        s0 += value * numbers[w]; s1 += value * numbers[w + 1];
        s2 += value * numbers[w + 2]; s3 += value * numbers[w + 3];
        s4 += value * numbers[w + 4]; s5 += value * numbers[w + 5];
        s6 += value * numbers[w + 6]; s7 += value * numbers[w + 7];
      }
      numbers[out] = s0; numbers[out + 1] = s1; numbers[out + 2] = s2; numbers[out + 3] = s3;
      numbers[out + 4] = s4; numbers[out + 5] = s5; numbers[out + 6] = s6; numbers[out + 7] = s7;
    }
  };
}

/** The WebAssembly module: its memory comes in, its two functions go out. */
function kernelBytes(memoryBytes, timesPlus) {
  const text = (word) => [word.length, ...new TextEncoder().encode(word)];
  const list = (items) => [...whole(items.length), ...items.flat()];
  const sized = (content) => [...whole(content.length), ...content];
  const pages = whole(memoryBytes >> 16);
  return new Uint8Array([
    0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0, // "\0asm", version 1
    1, ...sized(list([[0x60, ...list(Array(7).fill([0x7f])), 0]])), // one type: seven i32, nothing comes back
    2, ...sized(list([[...text("page"), ...text("memory"), 2, 1, ...pages, ...pages]])), // the memory
    3, ...sized(list([[0], [0]])), // two functions of that type
    7, ...sized(list([[...text("tile"), 0, 0], [...text("row"), 0, 1]])), // their names
    10, ...sized(list([sized(kernelBody(TILE, timesPlus)), sized(kernelBody(1, timesPlus))])),
  ]);
}

/** One function: a loop over rows of c, inside one over the inner size; sums stay in vector registers. */
function kernelBody(count, timesPlus) {
  const [A, PANELS, BIAS, C, END, ROW_OF_C, ROW_OF_A, Y, STOP, ROWS] = Array(10).keys(); // then an address a row of a
  const low = ROWS + count, high = low + 1; // vectors: of the panel, then two sums a row
  const rows = [...Array(count).keys()], halves = [0, 1];
  const sum = (row, half) => high + 1 + 2 * row + half;

  const get = (local) => [0x20, local];
  const set = (local) => [0x21, local];
  const plus = 0x6a; // i32.add
  const move = (local, by) => [...get(local), ...by, plus, ...set(local)];
  const constant = (number) => [0x41, number]; // below 64: one byte
  const load = (local, offset) => [...get(local), 0xfd, 0x00, 2, offset]; // v128.load
  const splat = (local) => [...get(local), 0xfd, 0x09, 2, 0]; // v128.load32_splat: one number, four times
  const store = (local, offset, value) => [...get(local), ...get(value), 0xfd, 0x0b, 2, offset]; // v128.store
  const loop = (...body) => [0x03, 0x40, ...body, 0x0b];
  const againBelow = (local, limit) => [...get(local), ...get(limit), 0x49, 0x0d, 0]; // i32.lt_u, br_if
  const addProduct = (row, half) => [ // sum = a * panel + sum
    ...timesPlus(splat(ROWS + row), get(half ? high : low), get(sum(row, half))), ...set(sum(row, half)),
  ];

  return [
    2, 2 + count, 0x7f, 2 + 2 * count, 0x7b, // locals: i32, then v128
    ...get(PANELS), ...get(ROW_OF_A), ...constant(3), 0x74, plus, ...set(STOP), // i32.shl: 8 times as long
    ...loop(
      ...rows.flatMap((row) => [
        ...get(A), ...set(ROWS + row), ...move(A, get(ROW_OF_A)),
        ...halves.flatMap((half) => [...load(BIAS, 16 * half), ...set(sum(row, half))]),
      ]),
      ...get(PANELS), ...set(Y),
      ...loop(
        ...load(Y, 0), ...set(low), ...load(Y, 16), ...set(high),
        ...rows.flatMap((row) => [...addProduct(row, 0), ...addProduct(row, 1), ...move(ROWS + row, constant(4))]),
        ...move(Y, constant(32)),
        ...againBelow(Y, STOP),
      ),
      ...rows.flatMap((row) => [...store(C, 0, sum(row, 0)), ...store(C, 16, sum(row, 1)), ...move(C, get(ROW_OF_C))]),
      ...againBelow(C, END),
    ),
    0x0b,
  ];
}

/** A whole number as WebAssembly writes it: seven bits a byte, the lowest first (LEB128). */
function whole(number) {
  return number < 128 ? [number] : [(number & 127) | 128, ...whole(number >>> 7)];
}
