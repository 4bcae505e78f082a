// The voice of each speaker: a row with the name, the choice, and a button to hear it.

import { element, make, note } from "./elements.js";
import { drawIcon } from "./player.js";
import { why } from "./server.js";

// `page` answers: sound, server, run, choose(label, name).
export class VoiceRows {
  constructor(page) {
    this.page = page;
  }

  // Of the page's view: `speakers` with their voices, and the `voices` to choose from.
  show({ speakers = [], voices = [] }) {
    const told = JSON.stringify([speakers, voices, this.page.run !== null]);
    const place = element("speakers");
    if (place.dataset.told === told) return;
    place.dataset.told = told;
    const focused = document.activeElement?.id;
    place.replaceChildren(...speakers.map(({ label, voice }, n) => this.#row(label, voice, voices, n)));
    if (focused?.startsWith("csm-voice-")) document.getElementById(focused)?.focus();
  }

  #row(label, chosen, voices, number) {
    const { page } = this;
    const row = make("div", { className: "csm-speaker" });
    row.innerHTML = `<label></label><select class="csm-plain"></select><button type="button" class="csm-play csm-sample"><svg viewBox="0 0 24 24" aria-hidden="true"><path/></svg></button><p class="csm-note" role="alert" hidden></p>`;
    const [name, select, listen, trouble] = row.children;
    name.textContent = label;
    name.htmlFor = select.id = `csm-voice-${number}`;
    select.setAttribute("aria-label", `Voice of ${label}`);
    select.append(...voices.map((voice) => new Option(voice.about ? `${voice.name} · ${voice.about}` : voice.name, voice.name)));
    if (!voices.some((voice) => voice.name === chosen)) select.prepend(new Option("choose a voice", ""));
    select.value = chosen;
    select.disabled = page.run !== null;
    select.addEventListener("change", () => page.choose(label, select.value));
    trouble.dataset.place = `voice:${label}`;
    const { deck } = page.sound;
    const sample = {
      source: page.server.voice(chosen),
      update: () => {
        const playing = deck.owner === sample && !deck.audio.paused && !deck.audio.ended;
        drawIcon(listen.querySelector("path"), playing);
        listen.setAttribute("aria-label", `${playing ? "Pause" : "Hear"} the voice of ${label}`);
      },
      broken: async () => note(trouble, await why(sample.source, "This recording can't be played; choose another voice.")),
    };
    listen.addEventListener("click", () => {
      if (deck.owner === sample && !deck.audio.paused) return deck.pause();
      page.sound.silence();
      deck.take(sample);
      deck.audio.play().catch(() => {});
    });
    sample.update();
    return row;
  }
}
