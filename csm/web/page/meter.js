// The position meter: how much of the model's positions the script takes, and how long it should last.

export function showMeter(place, budget, estimate) {
  if (!budget || budget.error) {
    place.replaceChildren();
    return;
  }
  const { limit, prompts, spoken, coming, total, slides, too_long } = budget;
  const share = (count) => `${Math.min(100, (100 * count) / limit)}%`;
  place.innerHTML =
    `<div class="csm-meter" role="meter" aria-label="Positions" aria-valuemin="0"><span data-part="prompts"></span><span data-part="spoken"></span><span data-part="coming"></span></div><p class="csm-hint"></p>`;
  const [meter, text] = place.children;
  meter.setAttribute("aria-valuemax", limit);
  meter.setAttribute("aria-valuenow", Math.min(total, limit));
  [prompts, spoken, coming].forEach((count, n) => (meter.children[n].style.width = share(count)));
  const parts = [`voices ${prompts}`, ...(spoken ? [`spoken ${spoken}`] : []), ...(coming ? [`to come about ${coming}`] : [])];
  let said = `${coming ? "About " : ""}${total} of ${limit} positions: ${parts.join(", ")}.`;
  if (too_long.length) said += ` Turn ${too_long[0] + 1} is too long for the model: make two of it, or use fewer voices.`;
  else if (slides.length) said += ` More than fits at once: before turn ${slides[0] + 1} the model forgets the oldest turns, and speaks on to the end.`;
  if (coming && estimate) {
    const others = estimate.ahead ? `, ${estimate.ahead} before you in the queue` : "";
    said += ` About ${Math.ceil(estimate.seconds)} s of sound, made in about ${Math.ceil(estimate.work)} s${others}.`;
  }
  text.textContent = said;
  meter.setAttribute("aria-valuetext", said);
  place.dataset.over = too_long.length > 0;
}
