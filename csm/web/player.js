// Sound on the page: live while it is made, and finished takes behind buttons. The last stop of the sound.

export const RATE = 24000;
const SOON = 0.06; // seconds from deciding to play to the first sample
const LEAD = 0.2; // seconds of sound at hand before a turn is begun, at least
const UNKNOWN_LEAD = 0.6; // the same while nothing is known of the model's speed
const LATE = 0.02; // seconds: a piece that is nearer than this to its time may come too late for the sound card
const MARGIN = 1.25;

// 16-bit little-endian samples in base64 -> Float32Array
export function decodePcm(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const words = new DataView(bytes.buffer);
  const wave = new Float32Array(bytes.length >> 1);
  for (let n = 0; n < wave.length; n++) wave[n] = words.getInt16(2 * n, true) / 32767;
  return wave;
}

// Plays pieces of sound as they come, each exactly behind the last: every piece has its place on the context's clock
// in whole samples, and the context runs at the sound's own rate, so that nothing is resampled piece by piece.
// A turn begins when what is at hand lasts until the rest will have been made, however slow that is.
export class LivePlayer {
  constructor(context, clock = () => performance.now() / 1000) {
    this.context = context;
    this.clock = clock;
    this.gain = context.createGain();
    this.gain.connect(context.destination);
    this.sources = new Set();
    this.speed = null; // seconds of sound made in a second
    this.next = 0; // the sample behind the last one that has its place
    this.log = []; // {turn, at, length} of each piece, in samples of the context's clock
    this.gaps = 0; // how often a turn ran dry
    this.turn = null;
  }

  begin(turn, expected) {
    this.turn = { index: turn, expected, waiting: [], made: 0, since: null, first: 0, open: false, begun: false };
  }

  push(wave) {
    const turn = this.turn;
    if (!turn || !wave.length) return;
    const now = this.clock();
    const seconds = wave.length / RATE;
    if (turn.since === null) Object.assign(turn, { since: now, first: seconds });
    turn.made += seconds;
    if (now - turn.since > 0.15) this.#measure((turn.made - turn.first) / (now - turn.since));
    turn.waiting.push(wave);
    if (turn.open && !this.#follows()) turn.open = false;
    if (turn.open || this.#enough()) this.#play();
  }

  // The turn is whole: play what is left of it.
  finish() {
    if (this.turn) this.#play();
    this.turn = null;
  }

  // Silent within 20 ms, and nothing of what was sent is played any more.
  stop() {
    const now = this.context.currentTime;
    this.gain.gain.setValueAtTime(this.gain.gain.value, now);
    this.gain.gain.linearRampToValueAtTime(0, now + 0.02);
    for (const source of this.sources) source.stop(now + 0.03);
    this.sources.clear();
    this.turn = null;
    this.next = 0;
  }

  get sounding() {
    return this.next > this.#now();
  }

  // The turn that is heard now, or null.
  heard() {
    const now = this.#now();
    const piece = this.log.find(({ at, length }) => at <= now && now < at + length);
    return piece ? piece.turn : null;
  }

  #now() {
    return this.context.currentTime * RATE;
  }

  // Slower counts at once, faster only little by little: a machine that faltered may falter again.
  #measure(speed) {
    this.speed = this.speed === null ? speed : Math.min(speed, 0.7 * this.speed + 0.3 * speed);
  }

  #enough() {
    const turn = this.turn;
    const waiting = turn.waiting.reduce((sum, wave) => sum + wave.length, 0) / RATE;
    const ahead = Math.max(0, this.next - this.#now()) / RATE + waiting;
    if (this.speed === null) return ahead >= Math.min(UNKNOWN_LEAD, turn.expected || UNKNOWN_LEAD);
    const left = Math.max(0, (turn.expected || 4) * MARGIN - turn.made);
    return ahead >= Math.max(LEAD, left * (MARGIN / this.speed - 1));
  }

  // Whether the last piece that has its place is still far enough from its end for another to follow it in time.
  #follows() {
    return this.next > this.#now() + LATE * RATE;
  }

  #play() {
    const turn = this.turn;
    if (turn.begun && turn.waiting.length && !this.#follows()) this.gaps += 1;
    turn.open = turn.begun = true;
    for (const wave of turn.waiting) {
      const at = this.#follows() ? this.next : Math.ceil((this.context.currentTime + SOON) * RATE);
      const buffer = this.context.createBuffer(1, wave.length, RATE);
      buffer.copyToChannel(wave, 0);
      const source = this.context.createBufferSource();
      source.buffer = buffer;
      source.connect(this.gain);
      source.start(at / RATE);
      source.onended = () => this.sources.delete(source);
      this.sources.add(source);
      this.log.push({ turn: turn.index, at, length: wave.length });
      this.next = at + wave.length;
    }
    turn.waiting = [];
  }
}

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
    this.icon.setAttribute("d", playing ? "M7 5h4v14H7zM13 5h4v14h-4z" : "M8 5v14l11-7z");
    this.label();
    if (document.activeElement !== this.range || playing) this.range.value = String(now);
    this.range.setAttribute("aria-valuetext", `${now.toFixed(1)} of ${this.seconds.toFixed(1)} seconds`);
    this.wave.style.setProperty("--played", this.seconds ? Math.min(1, now / this.seconds) : 0);
    this.time.textContent = this.source ? (now > 0.05 ? `${clock(now)} / ${clock(this.seconds)}` : clock(this.seconds)) : "";
    if (playing) requestAnimationFrame(() => this.playing && this.update());
  }
}

export function clock(seconds) {
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}
