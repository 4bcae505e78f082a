// Gradio 6.17.3's fields for sound refuse what a browser takes for a film or does not know; here they take it, too.

const ENDINGS = ["m4a", "aac", "mp4", "webm", "opus", "amr", "wma", "mka", "caf", "mov", "3gp", "flac", "aiff"];
const FIELD = "input[type=file][accept^=audio]";
const TAKEN = "audio/mpeg"; // a kind that Gradio takes; the file keeps its name, and the server looks at what is in it

// Let the file picker offer them. Gradio draws its fields anew: call this after every change.
export function offerAnySound() {
  for (const field of document.querySelectorAll(`${FIELD}:not([accept*='.m4a'])`)) {
    field.accept += `,audio/*,video/mp4,video/webm,${ENDINGS.map((ending) => `.${ending}`).join(",")}`;
  }
}

function isSound({ name, type }) {
  return /^(audio|video)\//.test(type) || ENDINGS.includes(name.toLowerCase().split(".").pop());
}

// The same files, called what Gradio takes.
function renamed(files) {
  const transfer = new DataTransfer();
  for (const file of files) transfer.items.add(isSound(file) ? new File([file], file.name, { type: TAKEN }) : file);
  return transfer;
}

// Before Gradio sees them; once for the whole page.
export function takeAnySound() {
  const chosen = ({ target }) => {
    if (target instanceof HTMLInputElement && target.matches(FIELD)) target.files = renamed(target.files).files;
  };
  const dropped = (event) => {
    const files = [...(event.dataTransfer?.files ?? [])];
    if (!event.isTrusted || !files.some(isSound)) return;
    if (!event.composedPath().some((part) => part.querySelector?.(`:scope > ${FIELD}`))) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    event.target.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: renamed(files) }));
  };
  document.addEventListener("change", chosen, true);
  document.addEventListener("drop", dropped, true);
}
