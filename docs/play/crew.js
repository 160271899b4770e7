/* The threads that compute, and what they have found out. Nothing is queued: whenever a thread is free it is given what
is wanted most at that moment, so a new setting is served at once, and nothing that was computed is thrown away. */
"use strict";

class Crew {
  /** `next()` gives a task {ask, done} or nothing; `failed` is told what went wrong. */
  constructor(size, source, model, next, failed) {
    this.next = next;
    this.idle = new Set();
    const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    for (let i = 0; i < size; i++) {
      const thread = new Worker(address);
      thread.onmessage = () => this.feed(thread); // it is ready
      thread.onerror = failed;
      thread.postMessage(model);
    }
  }

  feed(thread) {
    const task = this.next();
    if (!task) return void this.idle.add(thread);
    this.idle.delete(thread);
    thread.onmessage = ({ data }) => {
      task.done(data);
      this.feed(thread);
    };
    thread.postMessage(task.ask);
  }

  /** Something new may be wanted. */
  wake() {
    [...this.idle].forEach((thread) => this.feed(thread));
  }
}

/** What is known of each cut: nats of each row of each text, and what it wrote. */
class Findings {
  constructor(rows, changed) {
    Object.assign(this, { rows, changed, cuts: new Map() });
  }

  of(cut) {
    if (!this.cuts.has(cut.key)) {
      const empty = Object.entries(this.rows).map(([text, rows]) => [text, rows.map(() => undefined)]);
      this.cuts.set(cut.key, { texts: Object.fromEntries(empty), written: new Map() });
    }
    return this.cuts.get(cut.key);
  }

  /** To measure a row of a text, if nobody has asked yet. */
  measure(cut, text, row) {
    const found = this.of(cut).texts[text];
    if (found[row] !== undefined) return undefined;
    found[row] = null; // asked
    const done = (nats) => {
      found[row] = { nats, sum: nats.reduce((a, b) => a + b, 0) };
      this.changed();
    };
    return { ask: { cut, ids: this.rows[text][row] }, done };
  }

  /** What it writes behind a prompt, if nobody has asked yet. */
  write(cut, ids, length) {
    const { written } = this.of(cut), key = ids.join();
    if (written.has(key)) return undefined;
    written.set(key, null);
    return { ask: { cut, ids, write: length }, done: (more) => { written.set(key, more); this.changed(); } };
  }

  written(cut, ids) {
    return this.of(cut).written.get(ids.join());
  }

  /** Nats of each predicted token of a row, if they are known. */
  row(cut, text, row) {
    return this.of(cut).texts[text][row]?.nats;
  }

  /** Mean nats a token over all rows; while some are missing, the whole model's so far, plus what the cut costs more
  on the rows that both have read. */
  nats(cut, text, whole) {
    const mean = (rows) => rows.reduce((a, { sum }) => a + sum, 0) / rows.reduce((a, { nats }) => a + nats.length, 0);
    const own = this.of(cut).texts[text], base = this.of(whole).texts[text], done = own.filter(Boolean).length;
    if (done === own.length) return { mean: mean(own), done, all: true };
    const [ownOfBoth, baseOfBoth] = [own, base].map((found) => found.filter((_, row) => own[row] && base[row]));
    if (!ownOfBoth.length) return undefined;
    return { mean: mean(base.filter(Boolean)) + mean(ownOfBoth) - mean(baseOfBoth), done, all: false };
  }
}
