// What the server understood of a script that may mean otherwise, and one click to have it spoken as it is written.

import { element } from "./elements.js";

const LITERAL = "Taken as it stands: every line is spoken as it is written.";

// `page` answers: script, plan(loud).
export class Understood {
  constructor(page, literal) {
    this.page = page;
    this.literal = literal; // whether the text is taken as it stands
    this.told = element("understood-told");
    this.button = element("literal");
    this.button.addEventListener("click", () => {
      this.literal = !this.literal;
      page.plan(true);
    });
    page.script.addEventListener("input", () => page.script.value.trim() || this.forget());
  }

  // Another script has come in the place of the one that was meant.
  forget() {
    this.literal = false;
  }

  show(told) {
    this.#tell(this.literal ? LITERAL : told, this.literal || Boolean(told));
  }

  // The script can't be read, in whichever way: it may be meant as it stands.
  refused() {
    this.#tell(this.literal ? LITERAL : "", Boolean(this.page.script.value.trim()));
  }

  #tell(told, offered) {
    this.told.textContent = told;
    this.button.textContent = this.literal ? "Read it as a script" : "Take the text as it stands";
    element("understood").hidden = !offered;
  }
}
