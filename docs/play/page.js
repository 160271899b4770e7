/* The page: settings in, numbers out. `change` is the only way to another cut; everything shown is drawn from it. */
"use strict";

const byId = (id) => document.getElementById(id);

/** The text of an element that holds data; the element goes, its megabytes with it. */
function taken(id) {
  const text = byId(id).textContent;
  byId(id).remove();
  return text;
}

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64).buffer;
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes.buffer;
}

const NEW_TOKENS = 40, TEXTS = ["speeches", "wiki"];
const PROMPTS = ["The people of the United States", "I recommend to the Congress", "The peace of the world"];
const CRITERIA = { l1: "L1", activation: "activation", random: "chance" };

const config = JSON.parse(taken("config"));
const tokenizer = new Tokenizer(JSON.parse(taken("tokenizer")));
const measured = readSafetensors(bytesOf(taken("measured")));
const blocks = config.n_layer, width = config.n_inner ?? 4 * config.n_embd, neurons = blocks * width;
const guessing = Math.log(config.vocab_size); // nats of a model to which every token is as likely as any other

const slices = (numbers, length) =>
  Array.from({ length: numbers.length / length }, (_, at) => numbers.subarray(at * length, (at + 1) * length));
const rows = Object.fromEntries(
  TEXTS.map((text) => [text, slices(measured[`rows.${text}`], 64).map((row) => [...row])]),
);
const orders = { l1: measured["order.l1"], activation: measured["order.activation"] };
const draws = slices(measured["order.random"], neurons);

const settings = {
  criterion: "l1", seed: 0, percent: 20, mean: false, hand: new Int8Array(neurons), without: new Uint8Array(blocks),
};
const nothing = { percent: 0, mean: false, hand: new Int8Array(neurons), without: new Uint8Array(blocks) };
const tries = {
  l1: { ...nothing, criterion: "l1", percent: 20 },
  mean: { ...nothing, criterion: "l1", percent: 20, mean: true },
  block: { ...nothing, without: Uint8Array.of(1, ...Array(blocks - 1).fill(0)) },
};

const findings = new Findings(rows, () => later(drawResults));
const whole = cutOf({ ...settings, ...nothing });
const waiting = new Set(); // what `later` will draw
let cut, rivals, places, colours, crew, large = 0; // `large`: the block that is enlarged

function orderOf({ criterion, seed }) {
  return orders[criterion] ?? draws[seed];
}

function cutOf(wanted) {
  const gone = byHand(byOrder(orderOf(wanted), wanted.percent, blocks, width), wanted.hand);
  return makeCut(gone, wanted.without.slice(), wanted.mean, width);
}

function change(wanted) {
  Object.assign(settings, wanted);
  cut = cutOf(settings);
  rivals = isChoice(cut, width) ? draws.map((order) => sameSize(cut, order, width)) : [];
  drawControls();
  later(drawMap);
  later(drawResults);
  crew?.wake();
}

/** What is wanted most: first what it writes, then both texts, row after row, then the random cuts. */
function next() {
  const ids = promptIds(), both = [whole, cut], numbers = [...rows.wiki.keys()];
  const writing = findings.write(whole, ids, NEW_TOKENS) ?? findings.write(cut, ids, NEW_TOKENS);
  if (writing) return writing;
  const own = numbers.flatMap((row) => TEXTS.flatMap((text) => both.map((some) => [some, text, row])));
  const others = TEXTS.flatMap((text) => rivals.flatMap((rival) => numbers.map((row) => [rival, text, row])));
  for (const [some, text, row] of [...own, ...others]) {
    const task = findings.measure(some, text, row);
    if (task) return task;
  }
  return undefined;
}

function promptIds() {
  const ids = tokenizer.encode(byId("prompt").value).slice(-(config.n_positions - NEW_TOKENS));
  return ids.length ? ids : [0]; // an empty beginning is that of a new text
}

/** Call a function once before the next picture, however often it is asked for. */
function later(draw) {
  if (waiting.has(draw)) return;
  waiting.add(draw);
  requestAnimationFrame(() => {
    waiting.delete(draw);
    draw();
  });
}

// What is known so far

const natsOf = (some, text) => findings.nats(some, text, whole);
const perplexity = (nats) => short(Math.exp(nats.mean));

/** The random cuts, this one itself left out: how many, and the nats of those that are measured on a text. */
function rivalsOn(text) {
  const others = rivals.filter((rival) => rival.key !== cut.key), known = others.map((rival) => natsOf(rival, text));
  return { count: others.length, nats: known.filter((nats) => nats?.all).map(({ mean }) => mean) };
}

/** "worse than all 19 random cuts", from the numbers. */
function comparison(text) {
  const own = natsOf(cut, text), { count, nats } = rivalsOn(text);
  if (!own?.all || !nats.length) return "";
  const beaten = nats.filter((other) => other > own.mean).length, of = count < draws.length ? "other random" : "random";
  const how = beaten === nats.length ? "better than all" : beaten ? `better than ${beaten} of` : "worse than all";
  return `${nats.length < count ? "so far " : ""}${how} ${nats.length} ${of} cuts`;
}

/** What one sees, as a headline and more. */
function verdict() {
  if (cut.key === whole.key) return ["This is the whole model.", "Take something out of it."];
  const own = natsOf(cut, "speeches"), here = comparison("speeches"), there = comparison("wiki");
  if (!own) return ["Measuring …", ""];
  const price = `perplexity ${perplexity(own)} instead of ${perplexity(natsOf(whole, "speeches"))}`;
  if (!own.all) return [`So far: ${price}.`, `From ${own.done} of ${rows.speeches.length} rows of speeches.`];
  const beyond = own.mean > guessing ? " That is worse than guessing." : "";
  if (here) return [`${capital(here)}.`, `On speeches: ${price}.${beyond}${there && ` On Wikipedia: ${there}.`}`];
  const chance = rivals.length ? "Random cuts of the same size follow." : "Chance has no choice of neurons here.";
  return [`${capital(price)}.`, `On speeches.${beyond} ${chance}`];
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

// Drawing

function drawControls() {
  const { criterion, seed, percent, mean } = settings;
  document.querySelector(`[name=criterion][value=${criterion}]`).checked = true;
  byId("seed").value = seed;
  byId("percent").value = percent;
  byId("share").value = `${percent} %: ${Math.floor((percent * width) / 100 + 1e-9)} of ${width.toLocaleString("en")}`;
  byId("mean").checked = mean;
  byId("undo").hidden = !settings.hand.some(Boolean);
  for (const button of byId("tries").querySelectorAll("button")) {
    button.ariaPressed = String(cutOf({ ...settings, ...tries[button.dataset.try] }).key === cut.key);
  }
}

function drawMap() {
  places = new Float32Array(neurons);
  orderOf(settings).forEach((neuron, at) => { places[at - (at % width) + neuron] = (at % width) / (width - 1); });
  [...byId("blocks").children].forEach((item, block) => {
    const out = cut.without[block], count = cut.counts[block], gone = inBlock(cut.gone, block);
    const say = out ? "the whole block is out" : `${count.toLocaleString("en")} of ${width.toLocaleString("en")} gone`;
    drawBlock(item.querySelector("canvas"), gone, inBlock(places, block), colours);
    item.classList.toggle("out", Boolean(out));
    item.querySelector("canvas").ariaLabel = `Block ${block}: ${say}`;
    item.querySelector(".count").textContent = out ? "out" : `${count.toLocaleString("en")} gone`;
    item.querySelector(".enlarge").disabled = item.querySelector(".mlp").disabled = Boolean(out);
    item.querySelector(".mlp").ariaPressed = String(count === width);
    item.querySelector(".block").ariaPressed = String(Boolean(out));
  });
  const { n_embd: hidden, vocab_size: vocabulary, n_positions: positions } = config;
  const neuron = 2 * hidden + 1, block = 4 * hidden * hidden + 9 * hidden + width * neuron; // norms, attention, MLP
  const all = (vocabulary + positions + 2) * hidden + blocks * block;
  const left = all - cut.neurons * neuron - cut.without.reduce((a, b) => a + b, 0) * block;
  byId("size").textContent = `${(all / 1e6).toFixed(1)} million`;
  byId("left").textContent = `${(left / 1e6).toFixed(2)} of ${(all / 1e6).toFixed(2)} million weights are left.`;
  if (byId("large").open) drawLarge();
}

const inBlock = (numbers, block) => numbers.subarray(block * width, (block + 1) * width);

function drawLarge() {
  byId("large-title").textContent = `Block ${large}`;
  largeMap.draw(inBlock(cut.gone, large), inBlock(places, large), colours);
}

function drawResults() {
  const prices = TEXTS.map(drawText), others = TEXTS.map(rivalsOn);
  const [headline, detail] = verdict(), strong = document.createElement("strong");
  strong.textContent = headline;
  byId("verdict").replaceChildren(strong, ` ${detail}`);
  byId("bar").replaceChildren(strong.cloneNode(true), prices.join(" · "));
  byId("large-price").textContent = `Perplexity: ${prices.join(", ")}.`;
  const done = others[0].nats.length + others[1].nats.length, all = 2 * others[0].count;
  byId("progress").textContent = done < all ? `${done} of their ${all} measurements are done.` : "";
  const known = TEXTS.every((text) => natsOf(cut, text)?.all); // said aloud twice: without and with the random cuts
  if (known && (done === 0 || done === all)) byId("announcement").textContent = `${headline} ${detail}`;
  drawWriting();
  drawPassage();
}

/** The numbers and the drawing of one text; gives them back in short. */
function drawText(text) {
  const section = byId(text), base = natsOf(whole, text), own = natsOf(cut, text), random = rivalsOn(text).nats;
  const entries = { whole: base, cut: own, guessing: { mean: guessing, all: true } };
  for (const [kind, nats] of Object.entries(entries)) {
    const place = section.querySelector(`dd.${kind}`);
    place.textContent = nats ? `${nats.all ? "" : "≈ "}${perplexity(nats)}` : "…";
    place.title = nats ? `${nats.mean.toFixed(4)} nats a token` : "";
  }
  section.ariaBusy = String(!own?.all);
  if (!base) return "";
  const svg = section.querySelector("svg"), spread = random.map((mean) => perplexity({ mean })).join(", ");
  drawChart(svg, { whole: base.mean, cut: cut.key === whole.key ? undefined : own?.mean, random, guessing });
  svg.ariaLabel = `Perplexity: whole model ${perplexity(base)}; this cut ${own ? perplexity(own) : "not yet known"}.`;
  if (random.length) svg.ariaLabel += ` ${random.length} random cuts: ${spread}.`;
  return `${text === "wiki" ? "Wikipedia" : text} ${perplexity(base)} → ${own ? perplexity(own) : "…"}`;
}

function drawWriting() {
  const ids = promptIds(), [first, second] = [whole, cut].map((some) => findings.written(some, ids));
  let same = 0;
  while (first && second && same < first.length && first[same] === second[same]) same++;
  for (const [place, written] of [["whole-writes", first], ["cut-writes", second]]) {
    byId(place).ariaBusy = String(!written);
    if (!written) continue; // the old text stays until the new one is there
    const text = tokenizer.decode(written), before = tokenizer.decode(written.slice(0, same));
    const agreed = text.startsWith(before) ? before : ""; // not where the parting is inside a character
    const [prompt, alike, other] = ["span", "span", "em"].map((name) => document.createElement(name));
    prompt.textContent = byId("prompt").value;
    alike.textContent = agreed;
    other.textContent = text.slice(agreed.length);
    byId(place).replaceChildren(prompt, alike, other, written.length < NEW_TOKENS ? " (here it ends the text)" : "");
  }
}

function drawPassage() {
  const [before, after] = [whole, cut].map((some) => findings.row(some, "speeches", 0));
  if (!before || !after) return;
  byId("passage").replaceChildren(...rows.speeches[0].flatMap((id, at) => {
    const more = at ? after[at - 1] - before[at - 1] : 0; // the first token is given, not predicted
    const text = id ? tokenizer.decode([id]) : " ¶", word = text.trimStart();
    const piece = document.createElement(more > Math.LN2 ? "mark" : "span");
    piece.textContent = word;
    piece.className = more > 2 ? "much" : "some";
    const [was, is] = [before, after].map((nats) => Math.exp(-nats[at - 1]).toPrecision(2));
    if (at) piece.title = `probability ${was} before, ${is} now`;
    return [text.slice(0, text.length - word.length), piece];
  }));
}

// The reader's hands

function toggle(block, neuron) {
  if (cut.without[block]) return;
  const number = block * width + neuron, hand = settings.hand.slice();
  const out = !cut.gone[number], chosen = Boolean(byOrder(orderOf(settings), settings.percent, blocks, width)[number]);
  hand[number] = out === chosen ? 0 : out ? 1 : -1;
  change({ hand });
  byId("large-note").textContent = `Neuron ${neuron} is ${out ? "gone" : "back"}.`;
}

function toggleMLP(block) {
  const hand = settings.hand.slice();
  hand.fill(cut.counts[block] === width ? 0 : 1, block * width, (block + 1) * width);
  change({ hand });
}

function toggleBlock(block) {
  change({ without: settings.without.map((out, number) => (number === block ? 1 - out : out)) });
}

function enlarge(block) {
  large = block;
  byId("large-note").textContent = "";
  byId("large").showModal();
  drawLarge();
  largeMap.focus(0);
}

/** The neuron under the pointer. */
function neuronAt(canvas, event) {
  const box = canvas.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top].map((at) => Math.floor((at / box.width) * SIDE));
  return Math.min(Math.max(y, 0), width / SIDE - 1) * SIDE + Math.min(Math.max(x, 0), SIDE - 1);
}

function blockItem(block) {
  const item = document.createElement("li");
  item.innerHTML = `<div><strong>Block ${block}</strong>
    <button type="button" class="enlarge" aria-label="Enlarge block ${block}"></button></div>
    <canvas role="img"></canvas><p class="count"></p>
    <div class="buttons"><button type="button" class="mlp" aria-label="no MLP in block ${block}">no MLP</button>
    <button type="button" class="block" aria-label="no block ${block}">no block</button></div>`;
  const canvas = item.querySelector("canvas");
  canvas.addEventListener("click", (event) => { // a finger needs larger cells
    if (event.pointerType !== "mouse") enlarge(block);
    else toggle(block, neuronAt(canvas, event));
  });
  canvas.addEventListener("pointermove", (event) => {
    const neuron = neuronAt(canvas, event), place = Math.round(places[block * width + neuron] * (width - 1)) + 1;
    const order = `number ${place} of ${width} to go by ${CRITERIA[settings.criterion]}`;
    byId("under").textContent = `Block ${block}, neuron ${neuron}: ${order}.`;
  });
  item.querySelector(".enlarge").addEventListener("click", () => enlarge(block));
  item.querySelector(".mlp").addEventListener("click", () => toggleMLP(block));
  item.querySelector(".block").addEventListener("click", () => toggleBlock(block));
  return item;
}

const largeMap = new LargeMap(byId("grid"), width, (neuron) => toggle(large, neuron));

function listen() {
  byId("seed").append(...draws.map((_, seed) => new Option(seed, seed)));
  byId("blocks").append(...[...Array(blocks).keys()].map(blockItem));
  byId("prompts").append(...PROMPTS.map((prompt) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${prompt} …`;
    button.addEventListener("click", () => { byId("prompt").value = prompt; begin(); });
    return button;
  }));
  const begin = () => { later(drawResults); crew.wake(); };
  byId("prompt").addEventListener("input", begin);
  for (const radio of document.querySelectorAll("[name=criterion]")) {
    radio.addEventListener("change", () => change({ criterion: radio.value }));
  }
  byId("seed").addEventListener("change", () => change({ criterion: "random", seed: Number(byId("seed").value) }));
  byId("percent").addEventListener("input", () => change({ percent: Number(byId("percent").value) }));
  byId("mean").addEventListener("change", () => change({ mean: byId("mean").checked }));
  byId("undo").addEventListener("click", () => change({ hand: new Int8Array(neurons) }));
  byId("reset").addEventListener("click", () => change(nothing));
  byId("tries").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) change(tries[button.dataset.try]);
  });
  byId("close").addEventListener("click", () => byId("large").close());
  addEventListener("resize", () => later(drawResults));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { colours = palette(); later(drawMap); });
}

colours = palette();
listen();
change({});
const threads = Math.min(4, navigator.hardwareConcurrency || 2);
byId("threads").textContent = `this machine, in ${threads} ${threads > 1 ? "threads" : "thread"}`;
const model = { file: bytesOf(taken("model")), config, means: measured.means };
crew = new Crew(threads, taken("worker"), model, next, (error) => {
  byId("loading").textContent = `This browser can't run the model: ${error.message || "it gives no reason"}.`;
  byId("loading").hidden = false;
});
byId("loading").hidden = true;
