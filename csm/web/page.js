// The conversation tab: the script, its cards and the sound, kept in step with the session that the server holds.

import { Card } from "./cards.js";
import { ClipPlayer, Deck, LivePlayer, RATE, decodePcm } from "./player.js";
import { tidy } from "./tidy.js";

const PAUSE = 250; // ms without a key before the script is sent
const DOWNLOADS = [
  ["wav", "WAV"], ["mp3", "MP3"], ["flac", "FLAC"], ["stems", "Stems"], ["srt", "SRT"], ["vtt", "VTT"],
  ["zip", "All as zip"], ["csm", "Project"],
];
const LOST = "The connection to the server broke off; what was typed is still here, so please try again.";
const SPOKEN = "This conversation is being spoken"; // by the page before it was reloaded; that ends by itself
const KEY = "csm";
const ANSWER = 150; // ms that other tabs have to say that a conversation is theirs
const COPY = "This tab is a copy of another: it has the script, and a conversation of its own.";

const element = (id) => document.getElementById(`csm-${id}`);
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// What the server says about sound that could not be played.
async function why(source, otherwise) {
  try {
    const answer = await fetch(source);
    return answer.ok ? otherwise : (await answer.json()).error || otherwise;
  } catch {
    return LOST;
  }
}

class Refusal extends Error {
  constructor({ error, place }) {
    super(error || LOST);
    this.place = place || "";
  }
}

class Page {
  constructor() {
    this.stored = this.recall();
    this.token = this.stored.token || this.draw();
    this.channel = new BroadcastChannel(KEY);
    this.channel.addEventListener("message", ({ data }) => this.asks(data));
    this.named = this.stored.token ? this.alone() : Promise.resolve();
    this.deck = new Deck();
    this.view = { turns: [], speakers: [], voices: [] };
    this.cards = [];
    this.voices = this.stored.voices || {};
    this.busy = false;
    this.invalid = false;
    this.asked = 0;
    this.begin = 0; // the turn from which Generate speaks
    this.edited = null; // the card that was changed last, while the server has not agreed
    this.live = null;
    this.context = null;
  }

  // The fields, and what is remembered of them until the tab is closed

  draw() {
    return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  // A duplicated tab brings along what the other one remembers, its name too: then this one draws another.
  async alone() {
    const taken = await new Promise((resolve) => {
      this.taken = resolve;
      this.channel.postMessage({ asks: this.token });
      setTimeout(resolve, ANSWER);
    });
    if (!taken) return;
    this.token = this.draw();
    this.remember();
    this.copied = true;
  }

  asks({ asks, has }) {
    if (asks === this.token) this.channel.postMessage({ has: asks });
    if (has === this.token) this.taken?.(true);
  }

  recall() {
    try {
      return JSON.parse(sessionStorage.getItem(KEY)) || {};
    } catch {
      return {};
    }
  }

  remember() {
    try {
      if (!this.script) return;
      const { script, settings } = this.form();
      sessionStorage.setItem(KEY, JSON.stringify({ token: this.token, script, settings, voices: this.voices, mine: this.mine }));
    } catch {
      // A browser that keeps nothing forgets the script at a reload, and nothing else happens.
    }
  }

  form() {
    const settings = {};
    for (const field of this.fields()) {
      settings[field.name] = field.type === "checkbox" ? field.checked : field.value === "" ? null : Number(field.value);
    }
    return { script: this.script.value, voices: this.voices, settings };
  }

  fields() {
    return [...element("settings").querySelectorAll("input[name]")];
  }

  mount(root) {
    this.root = root;
    this.script = element("script");
    this.cards = [];
    const examples = JSON.parse(root.dataset.examples || "[]");
    this.examples = examples.map(([, script]) => script);
    this.mine = this.stored.mine ?? ""; // what an example has taken the place of
    element("examples").append(...examples.map(([name, script]) => this.exampleButton(name, script)));
    this.back = this.exampleButton("Back to my script", null);
    this.back.hidden = !this.mine;
    element("examples").append(this.back);
    this.script.value = this.stored.script ?? (examples[0] ? examples[0][1] : "");
    for (const field of this.fields()) {
      const value = this.stored.settings?.[field.name];
      if (field.type === "checkbox") field.checked = value ?? field.checked;
      else if (value !== undefined && value !== null) field.value = value;
      field.addEventListener("change", () => this.plan());
    }
    this.script.addEventListener("input", () => {
      this.edited = null;
      this.later();
    });
    this.script.addEventListener("change", () => this.plan());
    element("generate").addEventListener("click", () => this.speak(null, false));
    element("over").addEventListener("click", () => this.speak(0, false));
    element("stop").addEventListener("click", () => this.stop());
    element("open").addEventListener("change", (event) => this.open(event.target));
    this.whole = new ClipPlayer(this.deck, "the conversation", () => this.silence(), async () => this.status(await why(this.whole.source, "The conversation can't be played; press Generate again."), "error"));
    this.whole.element.classList.add("csm-large");
    this.saves = document.createElement("div");
    this.saves.className = "csm-row csm-saves";
    this.saves.setAttribute("role", "group");
    this.saves.setAttribute("aria-label", "Downloads");
    this.saves.append(...DOWNLOADS.map(([kind, name]) => this.saveButton(kind, name)));
    this.saveNote = Object.assign(document.createElement("p"), { className: "csm-note", hidden: true });
    this.saveNote.setAttribute("role", "alert");
    this.saveNote.dataset.of = "file";
    this.report = document.createElement("details");
    this.report.className = "csm-report";
    this.report.innerHTML = "<summary>Report</summary><pre tabindex='0'></pre>";
    element("whole").append(this.whole.element, this.saves, this.saveNote, this.report);
    this.settingsTold();
    root.dataset.ready = "true";
    performance.mark("csm-ready");
    this.refresh().then(() => this.plan()).then(() => this.copied && this.status(COPY, "quiet"));
    clearInterval(this.watch);
    this.watch = setInterval(() => this.follow(), 120);
  }

  // An example is spoken at once; what stood in its place comes back with the last button.
  exampleButton(name, script) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "csm-button csm-small", textContent: script ? `▸ ${name}` : name });
    if (script) button.setAttribute("aria-label", `Hear the example “${name}”`);
    button.addEventListener("click", () => {
      if (this.busy) return;
      const now = this.script.value;
      if (script && now.trim() && !this.examples.includes(now)) this.mine = now;
      this.script.value = script ?? this.mine;
      if (!script) this.mine = "";
      this.back.hidden = !this.mine;
      this.edited = null;
      if (script) this.speak(0, false);
      else this.plan();
    });
    return button;
  }

  // Asking the server

  async post(name, body) {
    await this.named;
    const asked = JSON.stringify({ ...body, token: this.token });
    let answer;
    try {
      answer = await fetch(`csm/${name}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: asked });
    } catch {
      throw new Refusal({ error: LOST });
    }
    if (!answer.ok) throw new Refusal(await answer.json().catch(() => ({})));
    return answer;
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.plan(), PAUSE);
  }

  // Bring the server to what stands here; true when it can be spoken. `loud`: the user asked for more than to look.
  async plan(loud = false) {
    clearTimeout(this.timer);
    this.remember();
    this.settingsTold();
    if (this.busy && !loud) {
      this.changed = true;
      return false;
    }
    const asked = ++this.asked;
    try {
      const answer = await this.post("plan", this.form());
      const view = await answer.json();
      if (asked !== this.asked) return true;
      this.invalid = false;
      this.quiet();
      this.show(view);
      return true;
    } catch (refusal) {
      if (asked !== this.asked) return false;
      this.invalid = refusal.place === "script" && this.edited === null;
      this.quiet();
      if (refusal.message.startsWith(SPOKEN) && !loud) this.timer = setTimeout(() => this.plan(), 1000);
      else this.refused(refusal, loud);
      this.lock();
      return false;
    }
  }

  async refresh() {
    try {
      const view = await (await this.post("view", {})).json();
      if (!this.busy) this.show({ ...this.view, ...view });
      else this.view.voices = view.voices;
    } catch (refusal) {
      this.refused(refusal, true);
    }
  }

  async speak(index, again) {
    if (this.busy) return;
    this.busy = true;
    this.pressed = performance.now();
    this.at = this.waited = this.kept = this.sounded = null;
    for (const note of [this.saveNote, element("open-note")]) this.note(note, "");
    this.lock();
    this.status("Starting …", "busy");
    this.silence();
    const aloud = element("settings").querySelector("input[name=aloud]").checked && this.listen();
    this.changed = false;
    try {
      const spoke = await this.plan(true);
      if (spoke) {
        const answer = await this.post("speak", { ...this.form(), turn: index ?? this.begin, again });
        await this.hear(answer.body.getReader(), aloud);
      }
      this.busy = false;
      if (spoke) this.show(this.view);
      else this.lock();
    } catch (refusal) {
      this.busy = false;
      if (!(refusal instanceof Refusal)) console.error(refusal);
      await this.refresh();
      this.refused(refusal instanceof Refusal ? refusal : new Refusal({ error: LOST }), true);
    }
    if (this.changed) this.plan();
  }

  // Follow the stream of a run to its end.
  async hear(reader, aloud) {
    const decoder = new TextDecoder();
    let text = "";
    this.made = 0;
    for (let ended = false; !ended; ) {
      const { value, done } = await reader.read();
      if (done) throw new Refusal({ error: LOST });
      text += decoder.decode(value, { stream: true });
      const lines = text.split("\n\n");
      text = lines.pop();
      for (const line of lines) ended = this.happened(JSON.parse(line.slice(6)), aloud) || ended;
    }
  }

  // One line of the stream; true when it was the last.
  happened(event, aloud) {
    const card = this.cards[event.index];
    const expected = this.view.budget?.expected?.[event.index] || 0;
    if (event.type === "queue") {
      this.waited = true;
      this.status(`Waiting for the model: ${event.ahead} before you, about ${Math.max(1, Math.round(event.seconds))} s …`, "busy");
    } else if (event.type === "turn") {
      this.made = 0;
      this.at = event.index;
      const takes = this.form().settings.takes;
      this.status(`Speaking turn ${event.index + 1} of ${event.total} (${event.speaker})${takes > 1 ? `, ${takes} takes` : ""} …`, "busy");
      card?.speaking(takes);
      if (aloud) this.live?.begin(event.index, expected);
    } else if (event.type === "sound") {
      const wave = decodePcm(event.pcm);
      this.made += wave.length / RATE;
      card?.grew(this.made, expected);
      if (aloud) this.live?.push(wave);
      this.heardAt();
    } else if (event.type === "takes") {
      card?.comparing(event, this.form().settings.takes, expected);
    } else if (event.type === "kept") {
      this.kept = true;
    } else if (event.type === "spoken") {
      this.live?.finish();
      this.heardAt();
      this.view.turns[event.index] = event.turn;
      card?.show(event.turn, this.view, true);
    } else if (event.type === "error") {
      throw new Refusal({ ...event, place: event.place || (this.at === null ? "" : `turn:${this.at}`) });
    } else if (event.type === "end") {
      this.view = event.view;
      this.told(event);
      return true;
    }
    return false;
  }

  told({ told, notice, view }) {
    const spoken = view.turns.filter((turn) => turn.chosen !== null).length;
    const stopped = this.halted;
    if (notice) this.cards[this.at]?.tell(notice);
    if (!told.made && !this.kept) return this.status("Stopped before anything was spoken.", "warning");
    const first = this.sounded === null || this.waited ? `after ${(told.first ?? told.seconds).toFixed(2)} s` : `${this.sounded.toFixed(2)} s after the click`;
    const made = this.kept
      ? "Spoken for somebody else before and kept"
      : `Made ${told.made.toFixed(1)} s in ${told.seconds.toFixed(1)} s: real-time factor ${told.factor.toFixed(2)}`;
    let text = `${plural(spoken, "turn")}, ${view.sound.seconds.toFixed(1)} s of sound. ${made}, first sound ${first}, seed ${view.settings.seed}.`;
    if (stopped) text = `Stopped. ${text}`;
    this.status(notice ? `${notice} ${text}` : text, notice || stopped ? "warning" : "done");
  }

  stop() {
    if (!this.busy) return;
    this.halted = true;
    element("stop").disabled = true;
    this.status("Stopping …", "busy");
    this.silence();
    this.post("stop", {}).catch((refusal) => this.refused(refusal, true));
  }

  // Cards

  // A card's text is being typed: the script follows at once.
  typed(index, text) {
    const turns = this.view.turns.map((turn, n) => (n === index ? { ...turn, text: text.replace(/\s*\n\s*/g, " ") } : turn));
    this.edited = index;
    this.script.value = turns.map((turn) => `${turn.speaker}: ${turn.text}`).join("\n");
    this.later();
  }

  async edit(index, change) {
    const turns = this.view.turns.map((turn, n) => ({ ...turn, text: n === index ? this.cards[n].text.value : turn.text }));
    Object.assign(turns[index], change);
    this.edited = index;
    this.script.value = turns.map((turn) => `${turn.speaker}: ${turn.text.replace(/\s*\n\s*/g, " ")}`).join("\n");
    await this.plan(true);
  }

  async keep(index, take) {
    try {
      const view = await (await this.post("keep", { ...this.form(), turn: index, take })).json();
      this.script.value = view.script;
      this.remember();
      this.show(view);
      this.status(`Take ${take + 1} of turn ${index + 1} is kept.${view.first_open === index + 1 ? " What follows was said after another take: carry on from there if you like." : ""}`, "done");
    } catch (refusal) {
      this.refused({ message: refusal.message, place: refusal.place || `turn:${index}` }, true);
    }
  }

  takeUrl(key) {
    return `csm/take/${this.token}/${key}`;
  }

  // Sound

  // The context for live sound; browsers only let it run from a click on.
  listen() {
    try {
      this.context ??= new AudioContext({ sampleRate: RATE, latencyHint: "playback" });
      this.context.resume();
      this.live = new LivePlayer(this.context);
      return true;
    } catch {
      return false; // no sound while it is made; the players still work
    }
  }

  // How long after the click the first sound is heard, in seconds.
  heardAt() {
    const first = this.live?.log[0];
    if (this.sounded !== null || !first) return;
    this.sounded = (performance.now() - this.pressed) / 1000 + Math.max(0, first.at / RATE - this.context.currentTime);
  }

  silence() {
    this.live?.stop();
    this.live = null;
    this.deck.pause();
  }

  // Mark the card that is heard now.
  follow() {
    let heard = this.live?.sounding ? this.live.heard() : null;
    if (this.whole?.playing && this.view.sound) {
      const spans = this.view.sound.spans.filter(({ start }) => start <= this.deck.audio.currentTime);
      heard = spans.length ? spans[spans.length - 1].index : null;
    }
    this.cards.forEach((card, n) => card.sounding(n === heard));
  }

  // Files

  saveButton(kind, name) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "csm-button csm-small csm-quiet", textContent: name });
    button.setAttribute("aria-label", `Download ${name}`);
    button.addEventListener("click", () => this.save(kind, button));
    return button;
  }

  async save(kind, button) {
    if (button.getAttribute("aria-busy") === "true") return;
    button.setAttribute("aria-busy", "true");
    this.note(this.saveNote, "");
    try {
      const answer = await fetch(`csm/save/${this.token}/${kind}`).catch(() => { throw new Refusal({ error: LOST }); });
      if (!answer.ok) throw new Refusal(await answer.json().catch(() => ({})));
      const name = /filename="?([^";]+)/.exec(answer.headers.get("Content-Disposition") || "")?.[1] || `conversation.${kind}`;
      const address = URL.createObjectURL(await answer.blob());
      Object.assign(document.createElement("a"), { href: address, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60000);
    } catch (refusal) {
      this.note(this.saveNote, refusal.message);
    }
    button.setAttribute("aria-busy", "false");
  }

  async open(input) {
    const file = input.files[0];
    input.value = "";
    if (!file || this.busy) return;
    this.note(element("open-note"), "");
    this.status(`Opening ${file.name} …`, "busy");
    try {
      const answer = await fetch(`csm/open?token=${this.token}`, { method: "POST", body: file }).catch(() => { throw new Refusal({ error: LOST }); });
      if (!answer.ok) throw new Refusal(await answer.json().catch(() => ({})));
      const view = await answer.json();
      this.script.value = view.script;
      this.voices = Object.fromEntries(view.speakers.map(({ label, voice }) => [label, voice]));
      for (const field of this.fields()) if (field.name in view.settings) field.value = view.settings[field.name];
      this.cards = [];
      element("cards").replaceChildren();
      this.show(view);
      this.remember();
      this.settingsTold();
      this.status(`${file.name} is open: ${plural(view.turns.length, "turn")}.`, "done");
    } catch (refusal) {
      this.refused({ message: refusal.message, place: "open" }, true);
    }
  }

  // Showing

  show(view) {
    this.view = view;
    this.edited = null;
    const list = element("cards");
    while (this.cards.length > view.turns.length) this.cards.pop().element.remove();
    while (this.cards.length < view.turns.length) {
      const card = new Card(this, this.cards.length);
      this.cards.push(card);
      list.append(card.element);
    }
    this.cards.forEach((card, n) => card.show(view.turns[n], view, this.busy || this.invalid));
    this.speakers(view);
    this.budget(view.budget, view.estimate);
    element("whole").hidden = !view.sound;
    if (view.sound) {
      this.whole.set(`csm/whole/${this.token}/${view.sound.version}`, view.sound.seconds, view.sound.bars);
      this.report.lastChild.textContent = JSON.stringify(view.report, null, 2);
    }
    this.buttons();
  }

  lock() {
    for (const card of this.cards) card.lock(this.busy || this.invalid);
    this.speakers(this.view);
    this.buttons();
  }

  buttons() {
    const open = this.view.first_open;
    this.begin = this.view.sound && open > 0 ? open : 0;
    const generate = element("generate");
    generate.textContent = this.begin ? `Carry on from turn ${this.begin + 1}` : "Generate";
    generate.disabled = this.busy;
    element("over").hidden = !this.begin;
    element("over").disabled = this.busy;
    element("stop").disabled = !this.busy;
    element("open").disabled = this.busy;
    for (const button of element("examples").children) button.disabled = this.busy;
    for (const button of this.saves.children) button.disabled = this.busy;
    this.root.dataset.busy = this.busy;
    if (!this.busy) this.halted = false;
  }

  speakers({ speakers = [], voices = [] }) {
    const told = JSON.stringify([speakers, voices, this.busy]);
    const place = element("speakers");
    if (place.dataset.told === told) return;
    place.dataset.told = told;
    const focused = document.activeElement?.id;
    place.replaceChildren(...speakers.map(({ label, voice }, n) => this.speaker(label, voice, voices, n)));
    if (focused?.startsWith("csm-voice-")) document.getElementById(focused)?.focus();
  }

  speaker(label, chosen, voices, number) {
    const row = document.createElement("div");
    row.className = "csm-speaker";
    row.innerHTML = `<label></label><select class="csm-plain"></select><button type="button" class="csm-play csm-sample"><svg viewBox="0 0 24 24" aria-hidden="true"><path/></svg></button><p class="csm-note" role="alert" hidden></p>`;
    const [name, select, listen, note] = row.children;
    name.textContent = label;
    name.htmlFor = select.id = `csm-voice-${number}`;
    select.setAttribute("aria-label", `Voice of ${label}`);
    select.append(...voices.map((voice) => new Option(voice.about ? `${voice.name} · ${voice.about}` : voice.name, voice.name)));
    if (!voices.some((voice) => voice.name === chosen)) select.prepend(new Option("choose a voice", ""));
    select.value = chosen;
    select.disabled = this.busy;
    select.addEventListener("change", () => {
      this.voices[label] = select.value;
      this.plan();
    });
    note.dataset.place = `voice:${label}`;
    const sample = {
      source: `csm/voice/${this.token}?name=${encodeURIComponent(chosen)}`,
      update: () => {
        const playing = this.deck.owner === sample && !this.deck.audio.paused && !this.deck.audio.ended;
        listen.querySelector("path").setAttribute("d", playing ? "M7 5h4v14H7zM13 5h4v14h-4z" : "M8 5v14l11-7z");
        listen.setAttribute("aria-label", `${playing ? "Pause" : "Hear"} the voice of ${label}`);
      },
      broken: async () => this.note(note, await why(sample.source, "This recording can't be played; choose another voice.")),
    };
    listen.addEventListener("click", () => {
      if (this.deck.owner === sample && !this.deck.audio.paused) return this.deck.pause();
      this.silence();
      this.deck.take(sample);
      this.deck.audio.play().catch(() => {});
    });
    sample.update();
    return row;
  }

  budget(budget, estimate) {
    const place = element("budget");
    if (!budget || budget.error) {
      place.replaceChildren();
      return;
    }
    const { limit, prompts, spoken, coming, total, slides, too_long } = budget;
    const over = too_long.length > 0;
    const share = (count) => `${Math.min(100, (100 * count) / limit)}%`;
    place.innerHTML =
      `<div class="csm-meter" role="meter" aria-label="Positions" aria-valuemin="0"><span data-part="prompts"></span><span data-part="spoken"></span><span data-part="coming"></span></div><p class="csm-hint"></p>`;
    const [meter, text] = place.children;
    meter.setAttribute("aria-valuemax", limit);
    meter.setAttribute("aria-valuenow", Math.min(total, limit));
    [prompts, spoken, coming].forEach((count, n) => (meter.children[n].style.width = share(count)));
    const parts = [`voices ${prompts}`, ...(spoken ? [`spoken ${spoken}`] : []), ...(coming ? [`to come about ${coming}`] : [])];
    text.textContent = `${coming ? "About " : ""}${total} of ${limit} positions: ${parts.join(", ")}.`;
    if (over) text.textContent += ` Turn ${too_long[0] + 1} is too long for the model: make two of it, or use fewer voices.`;
    else if (slides.length) text.textContent += ` More than fits at once: before turn ${slides[0] + 1} the model forgets the oldest turns, and speaks on to the end.`;
    if (coming && estimate) {
      const others = estimate.ahead ? `, ${estimate.ahead} before you in the queue` : "";
      text.textContent += ` About ${Math.ceil(estimate.seconds)} s of sound, made in about ${Math.ceil(estimate.work)} s${others}.`;
    }
    place.dataset.over = over;
    meter.setAttribute("aria-valuetext", text.textContent);
  }

  settingsTold() {
    const { seed, takes, temperature } = this.form().settings;
    element("settings-told").textContent = `${plural(takes ?? 1, "take")} · ${seed === -1 || seed === null ? "drawn seed" : `seed ${seed}`} · temperature ${temperature}`;
  }

  status(text, kind) {
    const status = element("status");
    status.textContent = text;
    status.dataset.kind = kind;
  }

  // Say what is wrong where it is wrong; loudly also in the status line.
  refused({ message, place = "" }, loud) {
    const [kind, which] = [place.split(":")[0], place.slice(place.indexOf(":") + 1)];
    const edited = kind === "script" && this.edited !== null;
    if (edited) this.cards[this.edited]?.tell(message.replace(/^Line \d+ has no text.*/, "There is nothing to say in this turn: write some words."));
    else if (kind === "turn") this.cards[Number(which)]?.tell(message);
    else if (kind === "voice") {
      const note = [...this.root.querySelectorAll("[data-place]")].find((one) => one.dataset.place === place);
      if (note) this.note(note, message);
    } else if (kind === "settings") {
      element("settings").open = true;
      this.note(element("settings-note"), message);
    } else if (kind === "open") this.note(element("open-note"), message);
    else if (kind === "script") this.note(element("script-note"), message);
    if (loud || !kind) this.status(message, "error");
  }

  // The form is right again. What was refused of a file is another matter, and stays.
  quiet() {
    for (const note of this.root.querySelectorAll(".csm-note:not([data-of=file])")) this.note(note, "");
    const status = element("status");
    if (status.dataset.kind === "error" && !this.busy) this.status("Ready.", "quiet");
  }

  note(place, text) {
    place.textContent = text;
    place.hidden = !text;
  }
}

window.csm = new Page();

// Gradio draws the page, and may draw it again.
function look() {
  tidy();
  const root = document.getElementById("csm-app");
  if (root && root !== window.csm.root) {
    if (window.csm.root) window.csm.stored = window.csm.recall();
    window.csm.mount(root);
  }
}
new MutationObserver(look).observe(document.documentElement, { childList: true, subtree: true });
look();
