// What the page says: the status line, and each refusal at the place that caused it.

import { element, make, note } from "./elements.js";

export class Notes {
  constructor(page) {
    this.page = page;
  }

  // `kind` is `quiet`, `busy`, `done`, `warning` or `error`.
  status(text, kind) {
    const status = element("status");
    status.textContent = text;
    status.dataset.kind = kind;
  }

  // How far what the status line tells has come, behind its sentence; screen readers don't say every figure.
  progress(text) {
    const status = element("status");
    status.querySelector("span")?.remove();
    const figures = make("span", { textContent: ` ${text}` });
    figures.setAttribute("aria-live", "off");
    status.append(figures);
  }

  // Say what is wrong where it is wrong; loudly also in the status line.
  refused({ message, place = "", code = "" }, loud) {
    const { cards, edited, root } = this.page;
    const [kind, which] = [place.split(":")[0], place.slice(place.indexOf(":") + 1)];
    if (kind === "script" && edited !== null) {
      cards[edited]?.tell(code === "no_text" ? "There is nothing to say in this turn: write some words." : message);
    } else if (kind === "turn") cards[Number(which)]?.tell(message);
    else if (kind === "voice") {
      const beside = [...root.querySelectorAll("[data-place]")].find((one) => one.dataset.place === place);
      if (beside) note(beside, message);
    } else if (kind === "settings") {
      element("settings").open = true;
      note(element("settings-note"), message);
    } else if (kind === "open") note(element("open-note"), message);
    else if (kind === "script") note(element("script-note"), message);
    if (loud || !kind) this.status(message, "error");
  }

  // The form is right again. What was refused of a file is another matter, and stays.
  quiet() {
    for (const place of this.page.root.querySelectorAll(".csm-note:not([data-of=file])")) note(place, "");
    if (element("status").dataset.kind === "error" && !this.page.run) this.status("Ready.", "quiet");
  }
}
