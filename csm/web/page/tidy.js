// What Gradio 6.17.3 leaves unnamed, or named otherwise than it looks, set right for screen readers and the keyboard.

const REPAIRS = {
  ".tab-container.visually-hidden:not([inert])": (element) => (element.inert = true),
  ".overflow-menu > button:not([aria-label])": (element) => element.setAttribute("aria-label", "More tabs"),
  "footer img:not([alt=''])": (element) => (element.alt = ""),
  "div[aria-label='Empty value']:not([role])": (element) => element.setAttribute("role", "img"),
  "input[role=listbox]": (element) => element.setAttribute("role", "combobox"),
  "button.playback[aria-label^=Adjust]": (element) => element.setAttribute("aria-label", `${element.textContent.trim()}: playback speed`),
  "button[aria-dropeffect][aria-label]": (element) => element.removeAttribute("aria-label"),
};

// Gradio may draw any part anew at any time: call this after every change.
export function tidy() {
  for (const [selector, repair] of Object.entries(REPAIRS)) document.querySelectorAll(selector).forEach(repair);
}
