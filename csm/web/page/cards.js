// One card a turn: who says what, its player, its state and what can be done with it.

import { make } from "./elements.js";
import { ClipPlayer } from "./player.js";

const ALONE = "The only take that was asked for."; // goes without saying
const STATES = {
  waiting: "not spoken yet",
  speaking: "being spoken",
  ended: "ended by itself",
  capped: "cut at the longest turn",
  stopped: "stopped on the way",
};

// `page` answers: sound, server, typed(index, text), edit(index, change), speak(index, again), keep(index, take).
export class Card {
  constructor(page, index) {
    this.page = page;
    this.index = index;
    this.shown = null; // the take that the player holds
    this.number = make("span", { className: "csm-number", textContent: index + 1 });
    this.speaker = make("select", { className: "csm-plain csm-who" });
    this.state = make("span", { className: "csm-state" });
    this.seconds = make("span", { className: "csm-seconds" });
    this.text = make("textarea", { className: "csm-text", rows: 1 });
    this.player = new ClipPlayer(page.sound.deck, "", () => page.sound.silence(), () => this.tell("This take can't be played; redo the turn."));
    this.progress = make("span", { className: "csm-progress" }, make("span"));
    this.why = make("p", { className: "csm-why" });
    this.fit = make("p", { className: "csm-fit", hidden: true });
    this.fit.textContent = "This turn is too long for the model: make two of it, or use fewer voices.";
    this.redo = make("button", { type: "button", className: "csm-button csm-small", textContent: "Redo" });
    this.from = make("button", { type: "button", className: "csm-button csm-small csm-offer" });
    this.takes = make("select", { className: "csm-plain csm-takes" });
    this.keep = make("button", { type: "button", className: "csm-button csm-small", textContent: "Keep this take" });
    this.note = make("p", { className: "csm-note", hidden: true });
    this.note.setAttribute("role", "alert");
    this.note.id = `csm-note-${index}`;
    this.text.setAttribute("aria-describedby", this.note.id);
    const name = `turn ${index + 1}`;
    this.speaker.setAttribute("aria-label", `Speaker of ${name}`);
    this.text.setAttribute("aria-label", `Text of ${name}`);
    this.takes.setAttribute("aria-label", `Takes of ${name}`);
    this.keep.setAttribute("aria-label", `Keep this take of ${name}`);
    this.player.rename(name);
    this.element = make(
      "li",
      { className: "csm-card" },
      make("div", { className: "csm-row csm-card-top" }, this.number, this.speaker, this.state, this.seconds),
      this.text,
      this.progress,
      this.player.element,
      this.why,
      this.fit,
      make("div", { className: "csm-row csm-card-foot" }, this.redo, this.takes, this.keep, this.from),
      this.note,
    );
    this.text.addEventListener("input", () => {
      this.grow();
      page.typed(this.index, this.text.value);
    });
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter") {
        event.preventDefault();
        this.text.blur();
      }
    });
    this.text.addEventListener("change", () => page.edit(this.index, { text: this.text.value }));
    this.speaker.addEventListener("change", () => page.edit(this.index, { speaker: this.speaker.value }));
    this.redo.addEventListener("click", () => page.speak(this.index, true));
    this.from.addEventListener("click", () => page.speak(Number(this.from.dataset.turn), false));
    this.takes.addEventListener("change", () => this.hear(Number(this.takes.value)));
    this.keep.addEventListener("click", () => page.keep(this.index, this.shown));
  }

  // `view` as the server tells it; `all` is the page's whole view.
  show(view, all, busy) {
    const fresh = !this.view || this.view.takes.length !== view.takes.length || this.view.chosen !== view.chosen;
    this.view = view;
    const state = view.state;
    this.element.dataset.state = state;
    this.element.dataset.stale = view.stale;
    this.state.textContent = view.stale ? `${state} · said after another take` : state;
    this.state.title = STATES[state];
    this.seconds.textContent = view.chosen === null ? "" : `${view.seconds.toFixed(1)} s`;
    this.#speakers(view, all);
    if (document.activeElement !== this.text && this.text.value !== view.text) this.text.value = view.text;
    this.grow();
    if (fresh || this.shown === null || this.shown >= view.takes.length) this.shown = view.chosen ?? view.takes.length - 1;
    this.#takes(view);
    this.hear(this.shown);
    this.fit.hidden = view.chosen !== null || !all.budget?.too_long?.includes(this.index);
    const open = all.first_open;
    const blocked = open !== null && open !== undefined && open < this.index;
    const last = all.turns.length - 1;
    const none = view.chosen === null;
    this.redo.textContent = none ? "Speak" : "Redo";
    this.redo.setAttribute("aria-label", `${this.redo.textContent} turn ${this.index + 1}`);
    this.early = all.turns.slice(0, this.index).some((turn) => turn.chosen === null);
    const after = open === this.index + 1;
    const here = open === this.index && this.index < last && this.index > 0;
    this.from.hidden = blocked || !(after || here);
    this.from.dataset.turn = after ? this.index + 1 : this.index;
    this.from.textContent = after ? "Carry on from here" : "Speak from here";
    this.from.setAttribute("aria-label", `${this.from.textContent}: speak turn ${Number(this.from.dataset.turn) + 1} and what follows`);
    this.lock(busy);
  }

  // Nothing can be changed while the conversation is spoken, or while the script can't be read.
  lock(locked) {
    this.text.readOnly = locked;
    this.speaker.disabled = locked;
    this.redo.disabled = locked || this.early;
    this.from.disabled = locked;
    this.keep.disabled = locked;
  }

  hear(number) {
    const take = this.view.takes[number];
    this.shown = take ? number : null;
    this.player.element.hidden = !take;
    this.why.hidden = true;
    if (take) {
      this.player.set(this.page.server.take(take.key), take.seconds, take.bars);
      const other = take.text !== this.view.text ? ` It says: “${take.text}”` : "";
      this.why.textContent = (take.reason === ALONE ? "" : take.reason) + other;
      this.why.hidden = !this.why.textContent;
      this.takes.value = String(number);
    }
    this.keep.hidden = !take || number === this.view.chosen;
  }

  // Sound of this turn has come: `made` seconds of about `expected`.
  grew(made, expected) {
    this.progress.firstChild.style.width = `${Math.min(100, (100 * made) / Math.max(expected, made, 0.1))}%`;
    this.seconds.textContent = `${made.toFixed(1)} s`;
  }

  speaking(takes) {
    this.element.dataset.state = "speaking";
    this.element.dataset.stale = false;
    this.state.textContent = "speaking";
    this.progress.firstChild.style.width = "0";
    this.player.element.hidden = true;
    this.fit.hidden = true;
    this.why.hidden = takes < 2;
    this.why.textContent = `Making ${takes} takes at once. The best is played as soon as it is known.`;
  }

  // How far the takes of this turn are: `seconds` of each are made, `heard` of them listened to.
  comparing({ seconds, heard }, takes, expected) {
    if (this.element.dataset.state !== "speaking") return;
    this.grew(seconds, expected);
    const about = seconds < expected ? ` of about ${expected.toFixed(1)} s` : " s";
    this.why.textContent = heard
      ? `Listening to take ${Math.min(heard, takes)} of ${takes}. The best is played as soon as it is known.`
      : `Making ${takes} takes at once: ${seconds.toFixed(1)}${about} of each. The best is played as soon as it is known.`;
  }

  sounding(now) {
    this.element.classList.toggle("csm-heard", now);
  }

  tell(sentence) {
    this.note.textContent = sentence;
    this.note.hidden = !sentence;
  }

  grow() {
    this.text.style.height = "auto";
    this.text.style.height = `${this.text.scrollHeight}px`;
  }

  #speakers(view, all) {
    const labels = all.speakers.map(({ label }) => label);
    const free = [..."ABCDEFGH"].find((letter) => !labels.includes(letter));
    const wanted = labels.map((label) => [label, label]);
    if (all.room > 0) wanted.push([free, `${free} (new)`]);
    const told = JSON.stringify(wanted);
    if (this.speaker.dataset.told !== told) {
      this.speaker.replaceChildren(...wanted.map(([value, textContent]) => make("option", { value, textContent })));
      this.speaker.dataset.told = told;
    }
    this.speaker.value = view.speaker;
  }

  #takes(view) {
    this.takes.hidden = view.takes.length < 2 && view.chosen !== null;
    if (!view.takes.length) this.takes.hidden = true;
    const names = view.takes.map((take, n) => `Take ${n + 1} of ${view.takes.length}${n === view.chosen ? " · kept" : ""}`);
    this.takes.replaceChildren(...names.map((textContent, n) => make("option", { value: String(n), textContent })));
  }
}
