/* What is taken out: from the reader's settings to a cut {gone, without, mean} as the engine knows it. */
"use strict";

/** A cut with a key: two cuts with the same key are the same model. A block that is out has no neurons to count. */
function makeCut(gone, without, mean, width) {
  without.forEach((out, block) => { if (out) gone.fill(0, block * width, (block + 1) * width); });
  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
  const counts = Array.from(without, (_, block) => sum(gone.subarray(block * width, (block + 1) * width)));
  const neurons = sum(counts), kept = mean && neurons > 0;
  const key = `${kept} ${without} ${new TextDecoder("latin1").decode(gone)}`;
  return { gone, without, mean: kept, counts, neurons, key };
}

/** The first neurons of each block's order [blocks * width] go; as many as `counts` says. */
function firstOf(order, counts, width) {
  const gone = new Uint8Array(order.length);
  counts.forEach((count, block) => {
    for (let i = 0; i < count; i++) gone[block * width + order[block * width + i]] = 1;
  });
  return gone;
}

/** What goes by an order and a share in percent: rounded down, as prune_neurons does. */
function byOrder(order, percent, blocks, width) {
  return firstOf(order, Array(blocks).fill(Math.floor((percent * width) / 100 + 1e-9)), width);
}

/** The same after the reader's hand: 1 is out, -1 is back in, 0 is as it was. */
function byHand(gone, hand) {
  return gone.map((out, neuron) => (hand[neuron] ? Number(hand[neuron] > 0) : out));
}

/** The control: as many neurons of the same blocks, but these ones by another order. */
function sameSize(cut, order, width) {
  return makeCut(firstOf(order, cut.counts, width), cut.without, cut.mean, width);
}

/** Whether chance has a choice: whether other neurons of some block could have gone instead. */
function isChoice(cut, width) {
  return cut.counts.some((count) => count > 0 && count < width);
}
