/* GPT-2, from its file to the next word. Matrices are flat arrays, row behind row; names are those of transformers.

With a cut {gone, without, mean}: `gone` has a 1 for each neuron that is taken out [blocks * width], `without` a 1 for
each block. A neuron that is gone writes nothing, or, where `mean` is set, what it wrote on average: that is the
constant that lesson 01 folds into the bias. So a masked model computes what a pruned one would. */
"use strict";

/** The tensors of a safetensors file: its header's length, the header as JSON, then all numbers. */
function readSafetensors(file) {
  const length = Number(new DataView(file).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(file, 8, length)));
  const kinds = { F16: Uint16Array, F32: Float32Array, I16: Int16Array };
  return Object.fromEntries(Object.entries(header).filter(([name]) => name !== "__metadata__").map(([name, entry]) => {
    const [begin, end] = entry.data_offsets;
    const numbers = new kinds[entry.dtype](file.slice(8 + length + begin, 8 + length + end));
    return [name, entry.dtype === "F16" ? fromHalf(numbers) : numbers];
  }));
}

/** float16 as float32: sign, five bits of exponent, ten of fraction; through a table of all there are. */
function fromHalf(halves) {
  const table = Float32Array.from({ length: 1 << 16 }, (_, half) => {
    const exponent = (half >> 10) & 31, fraction = half & 1023;
    return (half >> 15 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  });
  return Float32Array.from(halves, (half) => table[half]);
}

class GPT2 {
  /** From the tensors of its file, its config.json, and each neuron's mean [blocks * width]. */
  constructor(tensors, config, means) {
    const { n_embd: hidden, n_head: heads, n_layer: blocks, n_positions: positions, vocab_size: vocabulary } = config;
    Object.assign(this, { hidden, heads, blocks, positions, vocabulary, means, width: config.n_inner ?? 4 * hidden });
    this.epsilon = config.layer_norm_epsilon;
    this.judged = 64; // rows of logits at a time
    const weights = Object.values(tensors).reduce((sum, { length }) => sum + length, 0);
    const states = positions * ((2 + 3 * blocks) * hidden + this.width) + this.judged * vocabulary;
    this.memory = makeMemory(4 * (weights + vocabulary * (hidden + 1) + states));
    this.kernels = makeKernels(this.memory, [hidden, this.width]);
    this.used = 0;

    const layer = (name) => { // transformers' Conv1D holds [in, out]
      const bias = this.place(tensors[`${name}.bias`]), columns = bias.length, weight = tensors[`${name}.weight`];
      const inner = weight.length / columns;
      return { inner, columns, bias, panels: this.place(inPanels(inner, columns, (i, column) => weight[i * columns + column])) };
    };
    const norm = (name) => ({ weight: tensors[`${name}.weight`], bias: tensors[`${name}.bias`] });
    this.tokens = tensors["transformer.wte.weight"];
    this.places = tensors["transformer.wpe.weight"];
    this.layers = [...Array(blocks).keys()].map((block) => {
      const name = `transformer.h.${block}`;
      return {
        attentionNorm: norm(`${name}.ln_1`), attention: layer(`${name}.attn.c_attn`), mix: layer(`${name}.attn.c_proj`),
        mlpNorm: norm(`${name}.ln_2`), fc: layer(`${name}.mlp.c_fc`), proj: layer(`${name}.mlp.c_proj`),
        qkv: this.room(positions * 3 * hidden), // of all tokens so far: the cache of keys and values
      };
    });
    this.lastNorm = norm("transformer.ln_f");
    this.head = { // tied: the embedding again, [vocabulary, hidden]
      inner: hidden, columns: vocabulary, bias: this.room(vocabulary),
      panels: this.place(inPanels(hidden, vocabulary, (i, token) => this.tokens[token * hidden + i])),
    };
    this.stream = this.room(positions * hidden);
    this.normed = this.room(positions * hidden);
    this.neurons = this.room(positions * this.width);
    this.logits = this.room(this.judged * vocabulary);
  }

  /** Room for some numbers in the memory that kernels see. */
  room(length) {
    const room = new Float32Array(this.memory.buffer, this.used, length);
    this.used += 4 * length;
    return room;
  }

  place(numbers) {
    const room = this.room(numbers.length);
    room.set(numbers);
    return room;
  }

  /** out[row] = in[row] · weight + bias, for some rows. */
  product(input, layer, output, rows) {
    const { tile, row } = this.kernels[layer.inner], stride = 4 * layer.columns, tiled = rows - (rows % TILE);
    for (let column = 0; column < layer.columns; column += PANEL) {
      const panel = layer.panels.byteOffset + 4 * column * layer.inner, bias = layer.bias.byteOffset + 4 * column;
      const out = output.byteOffset + 4 * column, middle = out + tiled * stride;
      if (tiled) tile(input.byteOffset, panel, bias, out, middle, stride);
      if (tiled < rows) row(input.byteOffset + 4 * tiled * layer.inner, panel, bias, middle, out + rows * stride, stride);
    }
  }

  /** Layer norm: each row less its mean, over its standard deviation, times weight, plus bias. */
  normalise(input, { weight, bias }, output, rows) {
    for (let row = 0, at = 0; row < rows; row++, at += this.hidden) {
      let mean = 0, variance = 0;
      for (let i = 0; i < this.hidden; i++) mean += input[at + i] / this.hidden;
      for (let i = 0; i < this.hidden; i++) variance += (input[at + i] - mean) ** 2 / this.hidden;
      const scale = 1 / Math.sqrt(variance + this.epsilon);
      for (let i = 0; i < this.hidden; i++) output[at + i] = (input[at + i] - mean) * scale * weight[i] + bias[i];
    }
  }

  /** Each new token looks back at all tokens up to itself, in each head: softmax(q · k / sqrt(size)) · v. */
  attend(qkv, output, past, rows) {
    const { hidden, heads } = this, size = hidden / heads, step = 3 * hidden, scale = 1 / Math.sqrt(size);
    const weights = new Float64Array(past + rows);
    for (let row = 0; row < rows; row++) {
      for (let head = 0; head < heads; head++) {
        const query = (past + row) * step + head * size, keys = hidden + head * size, out = row * hidden + head * size;
        let largest = -Infinity, total = 0;
        for (let other = 0; other <= past + row; other++) {
          const key = other * step + keys;
          let dot = 0;
          for (let i = 0; i < size; i++) dot += qkv[query + i] * qkv[key + i];
          weights[other] = dot * scale;
          if (weights[other] > largest) largest = weights[other];
        }
        for (let other = 0; other <= past + row; other++) total += weights[other] = Math.exp(weights[other] - largest);
        for (let i = 0; i < size; i++) output[out + i] = 0;
        for (let other = 0; other <= past + row; other++) {
          const weight = weights[other] / total, value = other * step + keys + hidden;
          for (let i = 0; i < size; i++) output[out + i] += weight * qkv[value + i];
        }
      }
    }
  }

  /** GELU as GPT-2 has it, x / (1 + exp(-2u)) with u = sqrt(2/π) · (x + 0.044715 x³); then the cut. */
  activate(neurons, rows, block, cut) {
    const { width } = this, first = block * width, twice = 2 * Math.sqrt(2 / Math.PI);
    for (let row = 0; row < rows; row++) {
      for (let neuron = 0, at = row * width; neuron < width; neuron++, at++) {
        const x = neurons[at];
        if (!cut.gone[first + neuron]) neurons[at] = x / (1 + Math.exp(-twice * (x + 0.044715 * x * x * x)));
        else neurons[at] = cut.mean ? this.means[first + neuron] : 0;
      }
    }
  }

  /** Read tokens behind `past` others; `this.normed` then holds a row for each, from which the head predicts. */
  read(ids, past, cut) {
    const { hidden, stream, normed, neurons } = this, rows = ids.length;
    for (let row = 0; row < rows; row++) {
      for (let i = 0; i < hidden; i++) stream[row * hidden + i] = this.tokens[ids[row] * hidden + i] + this.places[(past + row) * hidden + i];
    }
    const write = (from) => { for (let i = 0; i < rows * hidden; i++) stream[i] += from[i]; };
    this.layers.forEach((layer, block) => {
      if (cut.without[block]) return; // the stream passes by
      this.normalise(stream, layer.attentionNorm, normed, rows);
      this.product(normed, layer.attention, layer.qkv.subarray(past * 3 * hidden), rows);
      this.attend(layer.qkv, normed, past, rows);
      this.product(normed, layer.mix, neurons, rows);
      write(neurons);
      this.normalise(stream, layer.mlpNorm, normed, rows);
      this.product(normed, layer.fc, neurons, rows);
      this.activate(neurons, rows, block, cut);
      this.product(neurons, layer.proj, normed, rows);
      write(normed);
    });
    this.normalise(stream, this.lastNorm, normed, rows);
  }

  /** Nats for each token but the first of a row of at most 64: log of the sum of exp(logits), less the token's logit. */
  nats(ids, cut) {
    const { vocabulary, logits } = this;
    this.read(ids, 0, cut);
    this.product(this.normed, this.head, logits, ids.length);
    return Float64Array.from(ids.slice(1), (token, row) => {
      const at = row * vocabulary;
      let largest = -Infinity, total = 0;
      for (let i = at; i < at + vocabulary; i++) if (logits[i] > largest) largest = logits[i];
      for (let i = at; i < at + vocabulary; i++) total += Math.exp(logits[i] - largest);
      return largest + Math.log(total) - logits[at + token];
    });
  }

  /** What it writes behind these tokens: always the likeliest next one, until it ends the text itself (token 0). */
  write(ids, count, cut) {
    const written = [];
    for (let past = 0, fresh = ids; written.length < count; ) {
      this.read(fresh, past, cut);
      this.product(this.normed.subarray((fresh.length - 1) * this.hidden), this.head, this.logits, 1);
      const logits = this.logits.subarray(0, this.vocabulary);
      const token = logits.reduce((best, logit, index) => (logit > logits[best] ? index : best), 0);
      if (token === 0) break;
      written.push(token);
      past += fresh.length;
      fresh = [token];
    }
    return written;
  }
}
