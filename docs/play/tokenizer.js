/* GPT-2's tokenizer: text into words, a word's bytes into the longest pieces that the merges allow (byte-level BPE). */
"use strict";

// Endings such as 'll; letters, digits or signs, each with one space before them; white space, its last one by itself.
const WORDS = new RegExp(
  ["'(?:[sdmt]|ll|ve|re)", " ?\\p{L}+", " ?\\p{N}+", " ?[^\\p{White_Space}\\p{L}\\p{N}]+",
    "\\p{White_Space}+(?!\\P{White_Space})", "\\p{White_Space}+"].join("|"), "gu",
);

class Tokenizer {
  /** From the vocabulary, names by number, and the merges, pairs of names from the first to the last. */
  constructor({ vocabulary, merges }) {
    // Each byte has a visible character: itself where it is one, else one behind 255.
    const visible = (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    let unseen = 256;
    this.characters = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(visible(byte) ? byte : unseen++));
    this.bytes = new Map(this.characters.map((character, byte) => [character, byte]));
    this.vocabulary = vocabulary;
    this.numbers = new Map(vocabulary.map((name, number) => [name, number]));
    this.ranks = new Map(merges.map(([left, right], rank) => [`${left} ${right}`, rank]));
  }

  encode(text) {
    const ids = [], end = this.vocabulary[0]; // the end token is the only one that stands in a text as it is
    text.split(end).forEach((part, index) => {
      if (index) ids.push(0);
      for (const [word] of part.matchAll(WORDS)) ids.push(...this.pieces(word).map((piece) => this.numbers.get(piece)));
    });
    return ids;
  }

  pieces(word) {
    const pieces = Array.from(new TextEncoder().encode(word), (byte) => this.characters[byte]);
    for (;;) { // join the pair that was learned first, until no pair is known
      let best = Infinity, place = -1;
      for (let i = 0; i + 1 < pieces.length; i++) {
        const rank = this.ranks.get(`${pieces[i]} ${pieces[i + 1]}`) ?? Infinity;
        if (rank < best) [best, place] = [rank, i];
      }
      if (place < 0) return pieces;
      pieces.splice(place, 2, pieces[place] + pieces[place + 1]);
    }
  }

  /** All at once: a character may be spread over several tokens. */
  decode(ids) {
    const names = ids.map((id) => this.vocabulary[id]).join("");
    return new TextDecoder().decode(Uint8Array.from(names, (character) => this.bytes.get(character)));
  }
}
