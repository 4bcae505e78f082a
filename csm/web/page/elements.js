// The parts of `page.html` by their names, and new ones made.

export const element = (id) => document.getElementById(`csm-${id}`);

export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

export function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// A place for one sentence: empty, it isn't there.
export function note(place, sentence) {
  place.textContent = sentence;
  place.hidden = !sentence;
}
