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
      const texts = Object.fromEntries(Object.entries(this.rows).map(([text, rows]) => [text, Array(rows.length).fill(null)]));
      this.cuts.set(cut.key, { texts, written: new Map() });
    }
    return this.cuts.get(cut.key);
  }

  /** The next row of a text to measure, if there is one that nobody works on. */
  measure(cut, text) {
    const found = this.of(cut).texts[text], row = found.indexOf(null);
    if (row < 0) return undefined;
    found[row] = "asked";
    return { ask: { cut, ids: this.rows[text][row] }, done: (nats) => { found[row] = nats; this.changed(); } };
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

  /** Mean nats a token over the rows that are measured, and whether these are all. Of `rows`, where given. */
  nats(cut, text, rows = this.measured(cut, text)) {
    const nats = rows.flatMap((row) => [...this.of(cut).texts[text][row]]);
    return { mean: nats.reduce((a, b) => a + b, 0) / nats.length, whole: rows.length === this.rows[text].length };
  }

  measured(cut, text) {
    return [...this.rows[text].keys()].filter((row) => typeof this.of(cut).texts[text][row] === "object" && this.of(cut).texts[text][row]);
  }
}
