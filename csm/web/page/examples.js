// Scripts to begin with: an example is spoken at a click, and gives back the script whose place it took.

import { element, make } from "./elements.js";

// `page` answers: script, understood, run, speak(index, again), plan().
export class Examples {
  // `scripts`: [name, script] of each; `mine`: what an example had taken the place of before.
  constructor(page, scripts, mine) {
    this.page = page;
    this.scripts = scripts.map(([, script]) => script);
    this.mine = mine;
    this.back = this.#button("Back to my script", () => this.#giveBack());
    this.back.hidden = !mine;
    element("examples").append(...scripts.map((example) => this.#example(...example)), this.back);
  }

  lock(locked) {
    for (const button of element("examples").children) button.disabled = locked;
  }

  #example(name, script) {
    const button = this.#button(`▸ ${name}`, () => this.#hear(script));
    button.setAttribute("aria-label", `Hear the example “${name}”`);
    return button;
  }

  #button(textContent, act) {
    const button = make("button", { type: "button", className: "csm-button csm-small", textContent });
    button.addEventListener("click", () => this.page.run || act());
    return button;
  }

  #hear(script) {
    const now = this.page.script.value;
    if (now.trim() && !this.scripts.includes(now)) this.mine = now;
    this.#put(script);
    this.page.speak(0, false);
  }

  #giveBack() {
    const script = this.mine;
    this.mine = "";
    this.#put(script);
    this.page.plan();
  }

  #put(script) {
    this.page.script.value = script;
    this.page.edited = null;
    this.page.understood.forget();
    this.back.hidden = !this.mine;
  }
}
