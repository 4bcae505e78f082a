// One run: from the press of a button to the last turn that it had spoken, followed on the cards and told at its end.

import { element, plural } from "./elements.js";
import { RATE, decodePcm } from "./live.js";

export class Run {
  // Begins in the click itself: browsers let sound begin nowhere else.
  constructor(page) {
    this.page = page;
    this.pressed = performance.now();
    this.turn = null; // which is spoken, as the server told
    this.made = 0; // seconds of it
    this.waited = false;
    this.kept = false; // somebody else had it spoken before
    this.sounded = null; // seconds from the press to the first sound
    this.halted = false;
    page.sound.silence();
    if (element("settings").querySelector("input[name=aloud]").checked) page.sound.listen();
  }

  // Follow what the server tells, to its end.
  async follow(happenings) {
    for await (const event of happenings) this.#happened(event);
  }

  halt() {
    this.halted = true;
    element("stop").disabled = true;
    this.page.notes.status("Stopping …", "busy");
    this.page.sound.silence();
    this.page.server.stop().catch((refusal) => this.page.notes.refused(refusal, true));
  }

  #happened(event) {
    const { page } = this;
    const { live } = page.sound;
    const card = page.cards[event.index];
    const expected = page.view.budget?.expected?.[event.index] || 0;
    const takes = page.form().settings.takes;
    if (event.type === "queue") {
      this.waited = true;
      page.notes.status(`Waiting for the model: ${event.ahead} before you, about ${Math.max(1, Math.round(event.seconds))} s …`, "busy");
    } else if (event.type === "turn") {
      this.made = 0;
      this.turn = event;
      page.notes.status(`Speaking ${this.#name()}${takes > 1 ? `, ${takes} takes together` : ""} …`, "busy");
      card?.speaking(takes);
      live?.begin(event.index, expected);
    } else if (event.type === "sound") {
      const wave = decodePcm(event.pcm);
      this.made += wave.length / RATE;
      card?.grew(this.made, expected);
      live?.push(wave);
      this.#sounds();
    } else if (event.type === "takes") {
      card?.comparing(event, takes, expected);
      if (this.halted) return;
      if (event.heard) page.notes.status(`Listening to take ${Math.min(event.heard, takes)} of ${takes} of ${this.#name()} …`, "busy");
      else page.notes.progress(`${event.frames} frames of each so far, ${event.seconds.toFixed(1)} s.`);
    } else if (event.type === "kept") {
      this.kept = true;
    } else if (event.type === "spoken") {
      live?.finish();
      this.#sounds();
      page.view.turns[event.index] = event.turn;
      card?.show(event.turn, page.view, true);
    } else if (event.type === "end") {
      page.view = event.view;
      this.#told(event);
    }
  }

  #name() {
    const { index, total, speaker } = this.turn;
    return `turn ${index + 1} of ${total} (${speaker})`;
  }

  // How long after the press the first sound is heard.
  #sounds() {
    const wait = this.page.sound.untilFirst();
    if (this.sounded === null && wait !== null) this.sounded = (performance.now() - this.pressed) / 1000 + wait;
  }

  #told({ told, notice, view }) {
    const { cards, notes } = this.page;
    if (notice) cards[this.turn?.index]?.tell(notice);
    if (!told.made && !this.kept) return notes.status("Stopped before anything was spoken.", "warning");
    const spoken = view.turns.filter((turn) => turn.chosen !== null).length;
    const first = this.sounded === null || this.waited ? `after ${(told.first ?? told.seconds).toFixed(2)} s` : `${this.sounded.toFixed(2)} s after the click`;
    const made = this.kept
      ? "Spoken for somebody else before and kept"
      : `Made ${told.made.toFixed(1)} s in ${told.seconds.toFixed(1)} s: real-time factor ${told.factor.toFixed(2)}`;
    let text = `${plural(spoken, "turn")}, ${view.sound.seconds.toFixed(1)} s of sound. ${made}, first sound ${first}, seed ${view.settings.seed}.`;
    if (this.halted) text = `Stopped. ${text}`;
    notes.status(notice ? `${notice} ${text}` : text, notice || this.halted ? "warning" : "done");
  }
}
