/* GPT-2, from its file to the next word. Matrices are flat arrays, row behind row; names are those of transformers.

With a cut {gone, neurons, without, mean, key}: `gone` has a 1 for each neuron that is taken out [blocks * width],
`neurons` counts them, `without` has a 1 for each block that is out. As in lesson 01, neurons leave both matrices of
their MLP, and where `mean` is set, what they wrote on average goes into the bias. `key` is another for another cut. */
"use strict";

/** A function's values at 1,024 places a unit, from `low` to `high`: `exp` itself would take most of the time.
A straight line between two of them is off by at most 1.2e-7 times the second derivative. */
function tabulate(low, high, of) {
  const table = Float32Array.from({ length: (high - low) * 1024 + 2 }, (_, place) => of(low + place / 1024));
  return (x) => {
    const place = (x - low) * 1024, left = Math.floor(place);
    return table[left] + (place - left) * (table[left + 1] - table[left]);
  };
}

const expTable = tabulate(-40, 0, Math.exp);
const expOf = (x) => (x < -40 ? 0 : expTable(x)); // of 0 and less

/** GELU as GPT-2 has it: x / (1 + exp(-2u)) with u = sqrt(2/π) · (x + 0.044715 x³). */
const geluTable = tabulate(-8, 8, (x) => x / (1 + Math.exp(-2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))));
const gelu = (x) => (x >= 8 ? x : x <= -8 ? 0 : geluTable(x));

class GPT2 {
  /** From the tensors of its file, its config.json, and each neuron's mean [blocks * width]. */
  constructor(tensors, config, means) {
    const { n_embd: hidden, n_head: heads, n_layer: blocks, n_positions: positions, vocab_size: vocabulary } = config;
    const width = config.n_inner ?? 4 * hidden, judged = 64; // rows of logits at a time
    Object.assign(this, { hidden, heads, vocabulary, width, means, epsilon: config.layer_norm_epsilon });
    const weights = Object.values(tensors).reduce((sum, { length }) => sum + length, 0) + vocabulary * (hidden + 1);
    const states = positions * ((5 + 3 * blocks) * hidden + width + positions) + judged * vocabulary;
    const cut = blocks * (2 * hidden * width + hidden + width);
    this.memory = makeMemory(4 * (weights + states + cut));
    this.kernels = makeKernels(this.memory);
    this.used = 0;

    const layer = (name) => { // transformers' Conv1D holds [in, out]
      const weight = tensors[`${name}.weight`], bias = tensors[`${name}.bias`], columns = bias.length;
      const inner = weight.length / columns, panels = this.room(weight.length);
      fillPanels(panels, inner, columns, (i, column) => weight[i * columns + column]);
      const ownBias = this.room(columns);
      ownBias.set(bias);
      return { inner, columns, panels, bias: ownBias };
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
        // what a cut leaves of the MLP
        cutFc: { inner: hidden, panels: this.room(hidden * width), bias: this.room(width) },
        cutProj: { columns: hidden, panels: this.room(width * hidden), bias: this.room(hidden) },
      };
    });
    this.lastNorm = norm("transformer.ln_f");
    // The head is the embedding again, [vocabulary, hidden].
    const panels = this.room(vocabulary * hidden);
    fillPanels(panels, hidden, vocabulary, (i, token) => this.tokens[token * hidden + i]);
    this.head = { inner: hidden, columns: vocabulary, panels, bias: this.room(vocabulary) };

    this.stream = this.room(positions * hidden);
    this.normed = this.room(positions * hidden);
    this.neurons = this.room(positions * width);
    this.logits = this.room(judged * vocabulary);
    this.query = this.room((positions * hidden) / heads); // of one head
    this.panels = this.room((positions * hidden) / heads); // of its keys, then of its values
    this.looks = this.room(positions * positions); // how much each token looks at each other
    this.headOut = this.room((positions * hidden) / heads);
    this.zeros = this.room(positions);
  }

  /** Room for some numbers in the memory that the kernels see. */
  room(length) {
    const room = new Float32Array(this.memory.buffer, this.used, length);
    this.used += 4 * length;
    return room;
  }

  /** output[row] = input[row] · panels + bias, for some rows. */
  product(input, { inner, columns, panels, bias }, output, rows) {
    const rowOfA = 4 * inner, rowOfC = 4 * columns, tiled = rows - (rows % TILE);
    for (let column = 0; column < columns; column += PANEL) {
      const panel = panels.byteOffset + column * rowOfA, b = bias.byteOffset + 4 * column;
      const c = output.byteOffset + 4 * column, middle = c + tiled * rowOfC, a = input.byteOffset;
      if (tiled) this.kernels.tile(a, panel, b, c, middle, rowOfC, rowOfA);
      if (tiled < rows) this.kernels.row(a + tiled * rowOfA, panel, b, middle, c + rows * rowOfC, rowOfC, rowOfA);
    }
  }

  /** Layer norm: each row less its mean, over its standard deviation, times weight, plus bias. */
  normalise(input, { weight, bias }, output, rows) {
    const { hidden, epsilon } = this;
    for (let row = 0, at = 0; row < rows; row++, at += hidden) {
      let mean = 0, variance = 0;
      for (let i = 0; i < hidden; i++) mean += input[at + i] / hidden;
      for (let i = 0; i < hidden; i++) variance += (input[at + i] - mean) ** 2 / hidden;
      const scale = 1 / Math.sqrt(variance + epsilon);
      for (let i = 0; i < hidden; i++) output[at + i] = (input[at + i] - mean) * scale * weight[i] + bias[i];
    }
  }

  /** In each head, each new token looks back at all tokens up to itself: softmax(q · k / sqrt(size)) · v. */
  attend(qkv, output, past, rows) {
    const { hidden, heads, query, looks, panels, headOut, zeros: bias } = this;
    const size = hidden / heads, step = 3 * hidden, scale = 1 / Math.sqrt(size);
    const seen = past + rows, columns = Math.ceil(seen / PANEL) * PANEL;
    for (let head = 0; head < heads; head++) {
      const first = head * size, keys = hidden + first, values = 2 * hidden + first;
      for (let row = 0; row < rows; row++) {
        for (let i = 0; i < size; i++) query[row * size + i] = scale * qkv[(past + row) * step + first + i];
      }
      fillPanels(panels, size, seen, (i, other) => qkv[other * step + keys + i]);
      this.product(query, { inner: size, columns, panels, bias }, looks, rows);
      for (let row = 0; row < rows; row++) softmax(looks, row * columns, past + row + 1, columns);
      fillPanels(panels, columns, size, (other, i) => (other < seen ? qkv[other * step + values + i] : 0));
      this.product(looks, { inner: columns, columns: size, panels, bias }, headOut, rows);
      for (let row = 0; row < rows; row++) {
        for (let i = 0; i < size; i++) output[row * hidden + first + i] = headOut[row * size + i];
      }
    }
  }

  /** Cut each MLP down to the neurons that stay, and zeros up to a whole panel. */
  prune({ gone, mean, key }) {
    const { hidden, width, means } = this;
    this.pruned = key;
    this.layers.forEach(({ fc, proj, cutFc, cutProj }, block) => {
      const first = block * width, stay = [], go = [];
      for (let neuron = 0; neuron < width; neuron++) (gone[first + neuron] ? go : stay).push(neuron);
      const inner = Math.ceil((stay.length || 1) / PANEL) * PANEL;
      cutFc.columns = cutProj.inner = inner;
      for (const numbers of [cutFc.panels, cutFc.bias, cutProj.panels]) numbers.fill(0);
      stay.forEach((neuron, at) => {
        cutFc.bias[at] = fc.bias[neuron];
        const from = cell(0, neuron, hidden), to = cell(0, at, hidden);
        for (let i = 0; i < hidden; i++) cutFc.panels[to + i * PANEL] = fc.panels[from + i * PANEL];
      });
      for (let column = 0; column < hidden; column++) {
        const from = cell(0, column, width), to = cell(0, column, inner);
        for (let i = 0; i < stay.length; i++) cutProj.panels[to + i * PANEL] = proj.panels[from + stay[i] * PANEL];
        let bias = proj.bias[column];
        if (mean) for (const neuron of go) bias += means[first + neuron] * proj.panels[from + neuron * PANEL];
        cutProj.bias[column] = bias;
      }
    });
  }

  /** Read tokens behind `past` others; `this.normed` then holds a row for each, from which the head predicts. */
  read(ids, past, cut) {
    const { hidden, stream, normed, neurons } = this, rows = ids.length;
    const add = (numbers) => { for (let i = 0; i < rows * hidden; i++) stream[i] += numbers[i]; };
    if (cut.neurons && this.pruned !== cut.key) this.prune(cut);
    ids.forEach((id, row) => {
      const token = id * hidden, place = (past + row) * hidden;
      for (let i = 0; i < hidden; i++) stream[row * hidden + i] = this.tokens[token + i] + this.places[place + i];
    });
    this.layers.forEach((layer, block) => {
      if (cut.without[block]) return; // the stream passes by
      this.normalise(stream, layer.attentionNorm, normed, rows);
      this.product(normed, layer.attention, layer.qkv.subarray(past * 3 * hidden), rows);
      this.attend(layer.qkv, normed, past, rows);
      this.product(normed, layer.mix, neurons, rows);
      add(neurons);
      this.normalise(stream, layer.mlpNorm, normed, rows);
      const [fc, proj] = cut.neurons ? [layer.cutFc, layer.cutProj] : [layer.fc, layer.proj];
      this.product(normed, fc, neurons, rows);
      for (let at = 0; at < rows * fc.columns; at++) neurons[at] = gelu(neurons[at]);
      this.product(neurons, proj, normed, rows);
      add(normed);
    });
    this.normalise(stream, this.lastNorm, normed, rows);
  }

  /** Nats of each token but the first, of at most 64: log of the sum of exp(logits), less the token's own logit. */
  nats(ids, cut) {
    const { vocabulary, logits } = this;
    this.read(ids, 0, cut);
    this.product(this.normed, this.head, logits, ids.length);
    return Float64Array.from(ids.slice(1), (token, row) => {
      const begin = row * vocabulary, end = begin + vocabulary;
      let largest = -Infinity, total = 0;
      for (let i = begin; i < end; i++) largest = Math.max(largest, logits[i]);
      for (let i = begin; i < end; i++) total += expOf(logits[i] - largest);
      return largest + Math.log(total) - logits[begin + token];
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

/** The first `count` numbers from `begin` become shares of 1, the others up to `columns`, the future, 0. */
function softmax(numbers, begin, count, columns) {
  let largest = -Infinity, total = 0;
  for (let i = begin; i < begin + count; i++) largest = Math.max(largest, numbers[i]);
  for (let i = begin; i < begin + count; i++) total += numbers[i] = expOf(numbers[i] - largest);
  for (let i = begin; i < begin + count; i++) numbers[i] /= total;
  numbers.fill(0, begin + count, begin + columns);
}
