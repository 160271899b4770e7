/* Products of matrices, the work of a language model: a WebAssembly kernel written byte by byte, or plain JavaScript.

A weight matrix [inner, columns] lies in panels of 8 columns, one panel behind the other, so that a product reads it
straight through. A kernel multiplies some rows of `a` by one panel:

  c[row, column] = bias[column] + sum over i of a[row, i] * panel[i, column]

It is called with addresses in bytes: a, panel, bias, c, end (behind the last row of c), and stride (of a row of c). */
"use strict";

const PANEL = 8; // columns: two vectors of four numbers
const TILE = 4; // rows that share what was loaded of a panel

/** A weight matrix [inner, columns] in panels; `at(i, column)` reads it. */
function inPanels(inner, columns, at) {
  const packed = new Float32Array(inner * columns);
  let place = 0;
  for (let first = 0; first < columns; first += PANEL) {
    for (let i = 0; i < inner; i++) {
      for (let column = first; column < first + PANEL; column++) packed[place++] = at(i, column);
    }
  }
  return packed;
}

/** Memory that a kernel can work on: {buffer}. */
function makeMemory(bytes) {
  const initial = Math.ceil(bytes / 65536); // pages
  return typeof WebAssembly === "object"
    ? new WebAssembly.Memory({ initial, maximum: initial })
    : { buffer: new ArrayBuffer(initial * 65536) };
}

/** Kernels for these inner sizes on a memory: {inner: {tile, row}}, for TILE rows at a time and for single ones. */
function makeKernels(memory, sizes) {
  const entries = (of) => Object.fromEntries(sizes.map((inner) => [inner, of(inner)]));
  try {
    const module = new WebAssembly.Module(kernelBytes(sizes, memory.buffer.byteLength));
    const { exports } = new WebAssembly.Instance(module, { page: { memory } });
    return entries((inner) => ({ tile: exports[`${TILE} x ${inner}`], row: exports[`1 x ${inner}`] }));
  } catch { // no WebAssembly here, or no vectors in it
    const numbers = new Float32Array(memory.buffer);
    return entries((inner) => ({ tile: plainKernel(numbers, inner), row: plainKernel(numbers, inner) }));
  }
}

/** The same in JavaScript. */
function plainKernel(numbers, inner) {
  return (a, panel, bias, c, end, stride) => {
    for (let x = a >> 2, out = c >> 2, b = bias >> 2; out < end >> 2; x += inner, out += stride >> 2) {
      let s0 = numbers[b], s1 = numbers[b + 1], s2 = numbers[b + 2], s3 = numbers[b + 3];
      let s4 = numbers[b + 4], s5 = numbers[b + 5], s6 = numbers[b + 6], s7 = numbers[b + 7];
      for (let i = 0, w = panel >> 2; i < inner; i++, w += PANEL) {
        const value = numbers[x + i];
        s0 += value * numbers[w]; s1 += value * numbers[w + 1]; s2 += value * numbers[w + 2]; s3 += value * numbers[w + 3];
        s4 += value * numbers[w + 4]; s5 += value * numbers[w + 5]; s6 += value * numbers[w + 6]; s7 += value * numbers[w + 7];
      }
      numbers[out] = s0; numbers[out + 1] = s1; numbers[out + 2] = s2; numbers[out + 3] = s3;
      numbers[out + 4] = s4; numbers[out + 5] = s5; numbers[out + 6] = s6; numbers[out + 7] = s7;
    }
  };
}

/** The WebAssembly module: for each inner size a function for TILE rows at a time, and one for single rows. */
function kernelBytes(sizes, bytes) {
  const kernels = sizes.flatMap((inner) => [TILE, 1].map((rows) => ({ rows, inner, name: `${rows} x ${inner}` })));
  const text = (word) => [word.length, ...new TextEncoder().encode(word)];
  const list = (items) => [...unsigned(items.length), ...items.flat()];
  const section = (id, content) => [id, ...unsigned(content.length), ...content];
  const I32 = 0x7f;
  return new Uint8Array([
    0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0, // "\0asm", version 1
    ...section(1, list([[0x60, ...list(Array(6).fill([I32])), 0]])), // one type: six whole numbers, nothing comes back
    ...section(2, list([[...text("page"), ...text("memory"), 2, 0, ...unsigned(bytes >> 16)]])), // the memory, imported
    ...section(3, list(kernels.map(() => [0]))), // every function has that type
    ...section(7, list(kernels.map(({ name }, index) => [...text(name), 0, index]))), // and goes out under its name
    ...section(10, list(kernels.map(({ rows, inner }) => {
      const body = kernelBody(rows, inner);
      return [...unsigned(body.length), ...body];
    }))),
  ]);
}

/** One function: loops over rows of c, inside over the inner size; sums stay in vector registers. */
function kernelBody(rows, inner) {
  const [A, B, BIAS, C, END, STRIDE, X, Y, OUT] = Array(9).keys(); // parameters, then addresses that move
  const low = OUT + 1, high = low + 1, sums = high + 1; // vectors: of the panel, then two sums a row
  const get = (local) => [0x20, local], set = (local) => [0x21, local];
  const move = (local, by) => [...get(local), ...by, 0x6a, ...set(local)]; // i32.add
  const constant = (number) => [0x41, ...signed(number)];
  const vector = (...code) => [0xfd, ...code];
  const load = (local, offset) => [...get(local), ...vector(0x00, 2, ...unsigned(offset))]; // v128.load
  const splat = (local, offset) => [...get(local), ...vector(0x09, 2, ...unsigned(offset))]; // one number, four times
  const multiply = vector(0xe6, 1), add = vector(0xe4, 1);
  const numbers = [...Array(rows).keys()];
  const whileBelow = (local, limit) => [...get(local), ...limit, 0x49, 0x0d, 0, 0x0b]; // i32.lt_u, br_if, end
  const sum = (row, half, value) => [...value, ...get(half ? high : low), ...multiply, ...get(sums + 2 * row + half), ...add, ...set(sums + 2 * row + half)];
  return [
    2, 3, 0x7f, 2 + 2 * rows, 0x7b, // locals: three addresses, vectors
    0x03, 0x40, // loop over rows
    ...numbers.flatMap((row) => [...load(BIAS, 0), ...set(sums + 2 * row), ...load(BIAS, 16), ...set(sums + 2 * row + 1)]),
    ...get(A), ...set(X), ...get(B), ...set(Y),
    0x03, 0x40, // loop over the inner size
    ...load(Y, 0), ...set(low), ...load(Y, 16), ...set(high),
    ...numbers.flatMap((row) => [0, 1].flatMap((half) => sum(row, half, splat(X, 4 * inner * row)))),
    ...move(X, constant(4)), ...move(Y, constant(4 * PANEL)),
    ...whileBelow(Y, [...get(B), ...constant(4 * PANEL * inner), 0x6a]),
    ...get(C), ...set(OUT),
    ...numbers.flatMap((row) => [0, 1].flatMap((half) => [ // v128.store
      ...get(OUT), ...get(sums + 2 * row + half), ...vector(0x0b, 2, 16 * half),
      ...(half ? move(OUT, get(STRIDE)) : []),
    ])),
    ...move(A, constant(4 * inner * rows)), ...get(OUT), ...set(C),
    ...whileBelow(C, get(END)),
    0x0b,
  ];
}

/** A whole number as WebAssembly writes it: seven bits a byte, the lowest first (LEB128). */
function unsigned(number) {
  return number < 128 ? [number] : [(number & 127) | 128, ...unsigned(number >>> 7)];
}

function signed(number) { // never negative here; the last byte's second bit would be its sign
  return number < 64 ? [number] : [(number & 127) | 128, ...signed(number >>> 7)];
}
