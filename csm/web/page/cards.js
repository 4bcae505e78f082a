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

// What else is to be told of a turn's take, and what it means.
const REMARKS = [
  ["stale", "said after another take", "what stands before it now is not what it heard"],
  ["doubt", "may have gone wrong", "redo it, or listen whether it is all right"],
  ["other_settings", "drawn with other settings", "the seed, the temperature or top-k is another one now"],
];

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
    this.words = make("div", { className: "csm-words" }, this.text);
    this.said = make("p", { className: "csm-said", hidden: true }); // what is read, where it is not what was typed
    this.cut = make("p", { className: "csm-said", hidden: true }); // in how many pieces it is spoken
    this.player = new ClipPlayer(page.sound.deck, "", () => page.sound.silence(), () => this.tell("This take can't be played; redo the turn."));
    this.directions = make("p", { className: "csm-directions", hidden: true });
    this.progress = make("span", { className: "csm-progress" }, make("span"));
    this.why = make("p", { className: "csm-why" });
    this.fit = make("p", { className: "csm-fit", hidden: true });
    this.fit.textContent = "This turn is too long for the model: make two of it, or use fewer voices.";
    this.redo = make("button", { type: "button", className: "csm-button csm-small", textContent: "Redo" });
    this.from = make("button", { type: "button", className: "csm-button csm-small csm-offer", textContent: "Carry on from here" });
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
    this.from.setAttribute("aria-label", `Carry on from here: speak turn ${index + 2} and what follows`);
    this.player.rename(name);
    this.element = make(
      "li",
      { className: "csm-card" },
      make("div", { className: "csm-row csm-card-top" }, this.number, this.speaker, this.state, this.seconds),
      this.directions,
      this.words,
      this.said,
      this.cut,
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
    this.from.addEventListener("click", () => page.speak(this.index + 1, false));
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
    const remarks = REMARKS.filter(([name]) => view[name]);
    this.state.textContent = [state, ...remarks.map(([, remark]) => remark)].join(" · ");
    this.state.title = [STATES[state], ...remarks.map(([, , what]) => what)].join("; ");
    this.seconds.textContent = ""; // the player tells them
    this.#speakers(view, all);
    if (document.activeElement !== this.text && this.text.value !== view.text) this.text.value = view.text;
    this.directions.textContent = view.directions.map((one) => `[${one}]`).join(" ");
    this.directions.hidden = !view.directions.length;
    this.directions.title = "Not spoken";
    this.grow();
    this.said.textContent = view.words ? `Read as: ${view.words}` : "";
    this.said.hidden = !view.words;
    this.cut.textContent = view.pieces > 1 ? `Spoken in ${view.pieces} pieces, one after the other.` : "";
    this.cut.hidden = view.pieces < 2;
    if (fresh || this.shown === null || this.shown >= view.takes.length) this.shown = view.chosen ?? view.takes.length - 1;
    this.#takes(view);
    this.hear(this.shown);
    this.fit.hidden = view.chosen !== null || !all.budget?.too_long?.includes(this.index);
    const none = view.chosen === null;
    this.redo.textContent = none ? "Speak" : "Redo";
    this.redo.setAttribute("aria-label", `${this.redo.textContent} turn ${this.index + 1}`);
    this.early = all.turns.slice(0, this.index).some((turn) => turn.chosen === null);
    this.from.hidden = all.first_open !== this.index + 1;
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
      this.player.set(this.page.server.take(take.key, take.seconds), take.seconds, take.bars);
      const other = take.text !== this.view.text ? ` It says: “${take.text}”` : "";
      const doubt = take.doubt ? `This may have gone wrong: ${take.doubt}. ` : "";
      this.why.textContent = doubt + (take.reason === ALONE ? "" : take.reason) + other;
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
    this.state.textContent = takes > 1 ? `speaking ${takes} takes` : "speaking";
    this.progress.firstChild.style.width = "0";
    this.player.element.hidden = true;
    this.fit.hidden = true;
    this.why.hidden = takes < 2;
    this.why.textContent = `${takes} takes are spoken together; the best is played as soon as it is known.`;
  }

  // How far the takes of this turn are: `frames` of each are made, `seconds` of sound, and `heard` takes listened to.
  comparing({ frames, seconds, heard }, takes, expected) {
    if (this.element.dataset.state !== "speaking") return;
    this.grew(seconds, expected);
    this.state.textContent = heard ? "comparing" : `speaking ${takes} takes`;
    const about = seconds < expected ? ` of about ${expected.toFixed(1)} s` : " s";
    this.why.textContent = heard
      ? `All ${takes} takes are spoken; listening to take ${Math.min(heard, takes)} of ${takes}, to play the best.`
      : `${takes} takes are spoken together: ${frames} frames of each so far, ${seconds.toFixed(1)}${about}.`;
  }

  sounding(now) {
    this.element.classList.toggle("csm-heard", now);
  }

  tell(sentence) {
    this.note.textContent = sentence;
    this.note.hidden = !sentence;
  }

  // The words once more, unseen, behind the field: they give it its height, even while the tab is not shown.
  grow() {
    this.words.dataset.words = this.text.value;
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
