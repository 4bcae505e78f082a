// Finished sound: takes, voices and the whole conversation behind play buttons, one of them at a time.

// The one element that plays finished sound: whoever begins to play, the other falls silent.
export class Deck {
  constructor() {
    this.audio = new Audio();
    this.audio.preload = "none";
    this.owner = null;
    for (const event of ["play", "pause", "ended", "timeupdate", "loadedmetadata", "seeked"]) {
      this.audio.addEventListener(event, () => this.owner && this.owner.update());
    }
    this.audio.addEventListener("error", () => this.owner && this.owner.broken());
  }

  take(owner) {
    if (this.owner === owner && this.audio.getAttribute("src") === owner.source) return;
    const before = this.owner;
    this.audio.pause();
    this.owner = owner;
    this.audio.src = owner.source;
    if (before && before !== owner) before.update();
  }

  pause() {
    this.audio.pause();
  }
}

// A play button, the sound's picture to seek in, and the time.
export class ClipPlayer {
  constructor(deck, name, onplay, onbroken) {
    this.deck = deck;
    this.source = "";
    this.seconds = 0;
    this.onplay = onplay;
    this.onbroken = onbroken;
    this.element = document.createElement("div");
    this.element.className = "csm-player";
    this.element.innerHTML =
      `<button type="button" class="csm-play"><svg viewBox="0 0 24 24" aria-hidden="true"><path/></svg></button>` +
      `<span class="csm-wave"><svg preserveAspectRatio="none" aria-hidden="true"><path/></svg>` +
      `<svg class="csm-played" preserveAspectRatio="none" aria-hidden="true"><path/></svg>` +
      `<input type="range" min="0" max="1" step="0.01" value="0"></span><span class="csm-time"></span>`;
    this.button = this.element.querySelector("button");
    this.icon = this.button.querySelector("path");
    this.wave = this.element.querySelector(".csm-wave");
    this.range = this.element.querySelector("input");
    this.time = this.element.querySelector(".csm-time");
    this.button.addEventListener("click", () => this.toggle());
    this.range.addEventListener("input", () => this.seek(Number(this.range.value)));
    this.rename(name);
    this.update();
  }

  rename(name) {
    this.name = name;
    this.range.setAttribute("aria-label", `Position in ${name}`);
    this.label();
  }

  label() {
    this.button.setAttribute("aria-label", `${this.playing ? "Pause" : "Play"} ${this.name}`);
  }

  // Another sound: its address, length in seconds and bars from 0 to 100.
  set(source, seconds, bars) {
    if (source === this.source) return;
    if (this.mine) this.deck.pause();
    this.source = source;
    this.seconds = seconds;
    this.range.max = String(seconds);
    const step = 4;
    const shape = bars.map((bar, n) => `M${n * step + 2} ${50 - bar / 2}V${50 + bar / 2}`).join("");
    for (const picture of this.wave.querySelectorAll("svg")) {
      picture.setAttribute("viewBox", `0 0 ${bars.length * step} 100`);
      picture.querySelector("path").setAttribute("d", shape);
    }
    this.update();
  }

  get mine() {
    return this.deck.owner === this && this.deck.audio.getAttribute("src") === this.source;
  }

  get playing() {
    return this.mine && !this.deck.audio.paused && !this.deck.audio.ended;
  }

  async toggle() {
    if (this.playing) return this.deck.pause();
    if (!this.source) return;
    this.onplay();
    this.deck.take(this);
    try {
      await this.deck.audio.play();
    } catch (error) {
      if (error.name !== "AbortError") this.broken();
    }
  }

  seek(seconds) {
    if (!this.source) return;
    this.deck.take(this);
    const audio = this.deck.audio;
    if (audio.readyState > 0) audio.currentTime = seconds;
    else {
      audio.preload = "metadata";
      audio.addEventListener("loadedmetadata", () => this.mine && (audio.currentTime = seconds), { once: true });
    }
    this.update(seconds);
  }

  broken() {
    if (this.mine) this.onbroken();
  }

  update(at) {
    const now = at ?? (this.mine ? this.deck.audio.currentTime : 0);
    const playing = this.playing;
    drawIcon(this.icon, playing);
    this.label();
    if (document.activeElement !== this.range || playing) this.range.value = String(now);
    this.range.setAttribute("aria-valuetext", `${now.toFixed(1)} of ${this.seconds.toFixed(1)} seconds`);
    this.wave.style.setProperty("--played", this.seconds ? Math.min(1, now / this.seconds) : 0);
    this.time.textContent = this.source ? (now > 0.05 ? `${clock(now)} / ${clock(this.seconds)}` : clock(this.seconds)) : "";
    if (playing) requestAnimationFrame(() => this.playing && this.update());
  }
}

// The sign on a play button: two bars while it plays, else a triangle.
export function drawIcon(path, playing) {
  path.setAttribute("d", playing ? "M7 5h4v14H7zM13 5h4v14h-4z" : "M8 5v14l11-7z");
}

function clock(seconds) {
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}
