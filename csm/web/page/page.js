// The conversation tab: the script, its cards and the sound, kept in step with the session that the server holds.

import { Card } from "./cards.js";
import { element, plural } from "./elements.js";
import { Examples } from "./examples.js";
import { Files } from "./files.js";
import { Memory } from "./memory.js";
import { showMeter } from "./meter.js";
import { Notes } from "./notes.js";
import { Run } from "./run.js";
import { BROKEN, Refusal, Server } from "./server.js";
import { Sound } from "./sound.js";
import { offerAnySound, takeAnySound } from "./sounds.js";
import { Talk } from "./talk.js";
import { tidy } from "./tidy.js";
import { Understood } from "./understood.js";
import { VoiceRows } from "./voices.js";

const PAUSE = 250; // ms without a key before the script is sent
const LOOK = 120; // ms between two looks at which turn is heard
const AGAIN = 1000; // ms until the server is asked again whether a run that this page does not follow has ended
const BACK = 2000; // ms until a server that did not answer is asked again
const GONE = "The server no longer has what was spoken: it keeps a conversation for an hour, and none when it starts anew. Script and voices are still here; press Generate to have it spoken again.";
const COPY = "This tab is a copy of another: it has the script, and a conversation of its own.";

// Directions as they can stand before a turn's text and be read again.
function directed(directions) {
  return directions.map((one) => `[${one.replaceAll("[", "(").replaceAll("]", ")")}] `).join("");
}

class Page {
  constructor() {
    this.memory = new Memory();
    this.server = new Server(this.memory);
    this.sound = new Sound();
    this.notes = new Notes(this);
    this.rows = new VoiceRows(this);
    this.view = { turns: [], speakers: [], voices: [] };
    this.cards = [];
    this.voices = this.memory.kept.voices || {}; // those that were chosen, by speaker
    this.run = null; // while the conversation is spoken
    this.invalid = false; // whether the script can't be read
    this.asked = 0;
    this.begin = 0; // the turn from which Generate speaks
    this.edited = null; // the card that was changed last, while the server has not agreed
  }

  get token() {
    return this.memory.token;
  }

  // The fields

  mount(root) {
    const { kept } = this.memory;
    this.root = root;
    this.script = element("script");
    this.cards = [];
    const examples = JSON.parse(root.dataset.examples);
    this.examples = new Examples(this, examples, kept.mine ?? "");
    this.files = new Files(this);
    this.understood = new Understood(this, kept.as_it_stands === true);
    this.script.value = kept.script ?? examples[0][1];
    for (const field of this.fields()) {
      const value = kept.settings?.[field.name];
      if (field.type === "checkbox") field.checked = value ?? field.checked;
      else if (value !== undefined && value !== null) field.value = value;
      field.addEventListener("change", () => this.plan());
    }
    this.word(kept);
    for (const name of ["dictionary", "spoken"]) element(name).addEventListener("change", () => this.plan());
    this.script.addEventListener("input", () => {
      this.edited = null;
      this.later();
    });
    this.script.addEventListener("change", () => this.plan());
    element("generate").addEventListener("click", () => this.speak(null, false));
    element("over").addEventListener("click", () => this.speak(0, false));
    element("stop").addEventListener("click", () => this.run?.halt());
    this.settingsTold();
    root.dataset.ready = "true";
    performance.mark("csm-ready");
    this.refresh().then(() => this.plan()).then(() => this.memory.copied && this.notes.status(COPY, "quiet"));
    clearInterval(this.watch);
    this.watch = setInterval(() => this.follow(), LOOK);
  }

  fields() {
    return [...element("settings").querySelectorAll("input[name]")];
  }

  // How texts are worded.
  word({ dictionary, spoken }) {
    element("dictionary").value = dictionary ?? "";
    element("spoken").checked = spoken === true;
  }

  form() {
    const settings = {};
    for (const field of this.fields()) {
      settings[field.name] = field.type === "checkbox" ? field.checked : field.value === "" ? null : Number(field.value);
    }
    const [dictionary, spoken] = [element("dictionary").value, element("spoken").checked];
    return { script: this.script.value, as_it_stands: this.understood.literal, voices: this.voices, settings, dictionary, spoken };
  }

  remember() {
    if (this.script) this.memory.keep({ ...this.form(), mine: this.examples.mine });
  }

  settingsTold() {
    const { seed, takes, temperature } = this.form().settings;
    element("settings-told").textContent = `${plural(takes ?? 1, "take")} · ${seed === -1 || seed === null ? "drawn seed" : `seed ${seed}`} · temperature ${temperature}`;
  }

  choose(label, voice) {
    this.voices[label] = voice;
    this.plan();
  }

  // Asking the server

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.plan(), PAUSE);
  }

  // Bring the server to what stands here; true when it can be spoken. `loud`: the user asked for more than to look.
  async plan(loud = false) {
    clearTimeout(this.timer);
    this.remember();
    this.settingsTold();
    if (this.run && !loud) {
      this.changed = true;
      return false;
    }
    const asked = ++this.asked;
    try {
      const view = await this.server.view("plan", this.form());
      if (asked !== this.asked) return true;
      this.invalid = false;
      this.notes.quiet();
      const lost = this.lost(view);
      this.show(view);
      if (lost) this.notes.status(GONE, "warning");
      return true;
    } catch (refusal) {
      if (asked !== this.asked) return false;
      this.invalid = refusal.place === "script" && this.edited === null;
      this.notes.quiet();
      if (refusal.place === "script") this.understood.refused();
      // It is spoken for the page before it was reloaded; that ends by itself.
      if (refusal.code === "busy" && !loud) this.timer = setTimeout(() => this.plan(), AGAIN);
      else this.notes.refused(refusal, loud);
      if (refusal.code === BROKEN) this.timer = setTimeout(() => this.plan(), BACK);
      this.lock();
      return false;
    }
  }

  async refresh() {
    try {
      const view = await this.server.view("view");
      const lost = this.lost(view);
      if (this.run) this.view.voices = view.voices;
      else this.show({ ...this.view, ...view });
      if (lost) this.notes.status(GONE, "warning");
    } catch (refusal) {
      this.notes.refused(refusal, true);
    }
  }

  // Whether the server, as it answers, knows nothing of takes that are shown here.
  lost(view) {
    return view.new && this.view.turns.some(({ chosen }) => chosen !== null);
  }

  // Speak from turn `index` on or, `again`, redo that turn; null goes on where something is left to be spoken.
  async speak(index, again) {
    if (this.run) return;
    this.run = new Run(this);
    this.files.forgive();
    this.lock();
    this.notes.status("Starting …", "busy");
    this.changed = false;
    try {
      const ready = await this.plan(true);
      if (ready) await this.run.follow(this.server.speak({ ...this.form(), turn: index ?? this.begin, again }));
      this.run = null;
      if (ready) this.show(this.view);
      else this.lock();
    } catch (refusal) {
      this.run = null;
      if (!(refusal instanceof Refusal)) console.error(refusal);
      await this.refresh();
      this.notes.refused(refusal instanceof Refusal ? refusal : new Refusal(), true);
      if (refusal.code === BROKEN) this.timer = setTimeout(() => this.plan(), BACK);
    }
    if (this.changed) this.plan();
  }

  async keep(index, take) {
    try {
      const view = await this.server.view("keep", { ...this.form(), turn: index, take });
      this.script.value = view.script;
      this.remember();
      this.show(view);
      const after = view.first_open === index + 1 ? " What follows was said after another take: carry on from there if you like." : "";
      this.notes.status(`Take ${take + 1} of turn ${index + 1} is kept.${after}`, "done");
    } catch (refusal) {
      this.notes.refused({ message: refusal.message, place: refusal.place || `turn:${index}`, code: refusal.code }, true);
    }
  }

  // Go on with a project that was opened.
  reopen(view) {
    this.understood.forget();
    this.script.value = view.script;
    this.voices = Object.fromEntries(view.speakers.map(({ label, voice }) => [label, voice]));
    for (const field of this.fields()) if (field.name in view.settings) field.value = view.settings[field.name];
    this.word(view);
    this.cards = [];
    element("cards").replaceChildren();
    this.show(view);
    this.remember();
    this.settingsTold();
  }

  // A script has come from a file.
  replace(text) {
    this.understood.forget();
    this.edited = null;
    this.script.value = text;
    this.plan(true);
  }

  // Cards write the script

  // A card's text is being typed: the script follows at once.
  typed(index, text) {
    this.write(this.view.turns.map((turn, n) => (n === index ? { ...turn, text } : turn)), index);
    this.later();
  }

  async edit(index, change) {
    const turns = this.view.turns.map((turn, n) => ({ ...turn, text: n === index ? this.cards[n].text.value : turn.text }));
    Object.assign(turns[index], change);
    this.write(turns, index);
    await this.plan(true);
  }

  write(turns, edited) {
    this.edited = edited;
    const line = ({ speaker, directions, text }) => `${speaker}: ${directed(directions)}${text.replace(/\s*\n\s*/g, " ")}`;
    this.script.value = turns.map(line).join("\n");
  }

  // Showing

  show(view) {
    this.view = view;
    const speaking = view.speakers.map(({ label }) => label);
    if (speaking.length) for (const label of Object.keys(this.voices)) if (!speaking.includes(label)) delete this.voices[label]; // the server remembers
    this.edited = null;
    while (this.cards.length > view.turns.length) this.cards.pop().element.remove();
    while (this.cards.length < view.turns.length) {
      const card = new Card(this, this.cards.length);
      this.cards.push(card);
      element("cards").append(card.element);
    }
    this.cards.forEach((card, n) => card.show(view.turns[n], view, this.run !== null || this.invalid));
    this.understood.show(view.understood ?? "");
    this.rows.show(view);
    showMeter(element("budget"), view.budget, view.estimate);
    this.files.show(view);
    this.buttons();
  }

  lock() {
    for (const card of this.cards) card.lock(this.run !== null || this.invalid);
    this.rows.show(this.view);
    this.buttons();
  }

  buttons() {
    const busy = this.run !== null;
    const open = this.view.first_open;
    this.begin = this.view.sound && open > 0 ? open : 0;
    const generate = element("generate");
    generate.textContent = this.begin ? `Carry on from turn ${this.begin + 1}` : "Generate";
    generate.disabled = busy;
    element("over").hidden = !this.begin;
    element("over").disabled = busy;
    element("stop").disabled = !busy;
    this.examples.lock(busy);
    this.files.lock(busy);
    this.root.dataset.busy = busy;
  }

  // Mark the card that is heard now.
  follow() {
    let heard = this.sound.heard();
    if (this.files.player.playing && this.view.sound) {
      const spans = this.view.sound.spans.filter(({ start }) => start <= this.sound.deck.audio.currentTime);
      heard = spans.length ? spans[spans.length - 1].index : null;
    }
    this.cards.forEach((card, n) => card.sounding(n === heard));
  }
}

window.csm = new Page();
window.csm.talk = new Talk(window.csm);
takeAnySound();

// Gradio draws the page, and may draw it again.
function look() {
  tidy();
  offerAnySound();
  const root = document.getElementById("csm-app");
  if (root && root !== window.csm.root) window.csm.mount(root);
  const talk = document.getElementById("csm-talk");
  if (talk && talk !== window.csm.talk.root) window.csm.talk.mount(talk);
}
new MutationObserver(look).observe(document.documentElement, { childList: true, subtree: true });
look();
