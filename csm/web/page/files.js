// The finished conversation as files: its player, the downloads, and a project that is opened again.

import { element, make, note, plural } from "./elements.js";
import { ClipPlayer } from "./player.js";
import { why } from "./server.js";

const DOWNLOADS = [
  ["wav", "WAV"], ["mp3", "MP3"], ["flac", "FLAC"], ["stems", "Stems"], ["srt", "SRT"], ["vtt", "VTT"],
  ["zip", "All as zip"], ["csm", "Project"],
];
const KEPT = 60000; // ms that a download stays at hand for the browser

// `page` answers: sound, server, notes, run, reopen(view), replace(script).
export class Files {
  constructor(page) {
    this.page = page;
    const broken = async () => page.notes.status(await why(this.player.source, "The conversation can't be played; press Generate again."), "error");
    this.player = new ClipPlayer(page.sound.deck, "the conversation", () => page.sound.silence(), broken);
    this.player.element.classList.add("csm-large");
    this.saves = make("div", { className: "csm-row csm-saves" }, ...DOWNLOADS.map(([kind, name]) => this.#button(kind, name)));
    this.saves.setAttribute("role", "group");
    this.saves.setAttribute("aria-label", "Downloads");
    this.trouble = make("p", { className: "csm-note", hidden: true });
    this.trouble.setAttribute("role", "alert");
    this.trouble.dataset.of = "file";
    this.report = make("details", { className: "csm-report", innerHTML: "<summary>Report</summary><pre tabindex='0'></pre>" });
    element("whole").append(this.player.element, this.saves, this.trouble, this.report);
    element("open").addEventListener("change", ({ target }) => this.#open(target));
    element("read").addEventListener("change", ({ target }) => this.#read(target));
  }

  show({ sound, report }) {
    element("whole").hidden = !sound;
    if (!sound) return;
    this.player.set(this.page.server.whole(sound.version), sound.seconds, sound.bars);
    this.report.lastChild.textContent = JSON.stringify(report, null, 2);
  }

  lock(locked) {
    element("open").disabled = locked;
    element("read").disabled = locked;
    for (const button of this.saves.children) button.disabled = locked;
  }

  // What was refused of a file before is of no interest any more.
  forgive() {
    for (const place of [this.trouble, element("open-note")]) note(place, "");
    element("read-told").hidden = true;
  }

  #button(kind, name) {
    const button = make("button", { type: "button", className: "csm-button csm-small csm-quiet", textContent: name });
    button.setAttribute("aria-label", `Download ${name}`);
    button.addEventListener("click", () => this.#save(kind, button));
    return button;
  }

  async #save(kind, button) {
    if (button.getAttribute("aria-busy") === "true") return;
    button.setAttribute("aria-busy", "true");
    note(this.trouble, "");
    try {
      const [file, name] = await this.page.server.save(kind);
      const address = URL.createObjectURL(file);
      make("a", { href: address, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(address), KEPT);
    } catch (refusal) {
      note(this.trouble, refusal.message);
    }
    button.setAttribute("aria-busy", "false");
  }

  // A file of a script takes the place of the one that stands there.
  async #read(input) {
    const { page } = this;
    const file = input.files[0];
    input.value = "";
    if (!file || page.run) return;
    this.forgive();
    try {
      const { text, note: told } = await page.server.read(file);
      page.replace(text);
      element("read-told").textContent = told;
      element("read-told").hidden = !told;
    } catch (refusal) {
      page.notes.refused({ message: refusal.message, place: "open" }, true);
    }
  }

  async #open(input) {
    const { page } = this;
    const file = input.files[0];
    input.value = "";
    if (!file || page.run) return;
    note(element("open-note"), "");
    page.notes.status(`Opening ${file.name} …`, "busy");
    try {
      const view = await page.server.open(file);
      page.reopen(view);
      const lost = view.unheard
        ? " An earlier version of the model spoke it, and this one can’t play that: have it spoken again."
        : "";
      page.notes.status(`${file.name} is open: ${plural(view.turns.length, "turn")}.${lost}`, "done");
    } catch (refusal) {
      page.notes.refused({ message: refusal.message, place: "open" }, true);
    }
  }
}
