// The sound of an answer: pieces put behind each other on the sound card's clock, and how much of it was heard.

import { RATE } from "./live.js";

const LEAD = 0.12; // seconds of sound at hand before an answer is begun
const AGAIN = 0.24; // the same after it ran dry
const SOON = 0.02;

export class Mouth {
  constructor(context) {
    this.context = context;
    this.gain = context.createGain();
    this.gain.connect(context.destination);
    this.sources = new Set();
    this.log = []; // {item, at, seconds} of each piece, on the context's clock
    this.waiting = [];
    this.next = 0;
    this.lead = LEAD;
  }

  // The next samples of the answer `item`.
  push(item, wave) {
    if (!wave.length) return;
    this.waiting.push([item, wave]);
    const dry = this.next < this.context.currentTime + SOON;
    if (dry && this.log.some((piece) => piece.item === item)) this.lead = AGAIN;
    const seconds = this.waiting.reduce((sum, [, piece]) => sum + piece.length, 0) / RATE;
    if (!dry || seconds >= this.lead) this.#play();
  }

  // All of an answer is there.
  finish() {
    this.#play();
    this.lead = LEAD;
  }

  // Silent within 10 ms; what was not heard is never played.
  stop() {
    const now = this.context.currentTime;
    this.gain.gain.cancelScheduledValues(now);
    this.gain.gain.setValueAtTime(1, now);
    this.gain.gain.linearRampToValueAtTime(0, now + 0.008);
    this.gain.gain.setValueAtTime(1, now + 0.02);
    for (const source of this.sources) source.stop(now + 0.01);
    this.sources.clear();
    this.waiting = [];
    for (const piece of this.log) piece.seconds = Math.max(0, Math.min(piece.seconds, now - piece.at));
    this.next = 0;
    this.lead = LEAD;
  }

  get sounding() {
    return this.waiting.length > 0 || this.next > this.context.currentTime;
  }

  // Milliseconds of the answer `item` that were heard.
  heard(item) {
    const now = this.context.currentTime;
    const pieces = this.log.filter((piece) => piece.item === item);
    return Math.round(1000 * pieces.reduce((sum, { at, seconds }) => sum + Math.max(0, Math.min(seconds, now - at)), 0));
  }

  #play() {
    for (const [item, wave] of this.waiting) {
      const at = Math.max(this.next, this.context.currentTime + SOON);
      const buffer = this.context.createBuffer(1, wave.length, RATE);
      buffer.copyToChannel(wave, 0);
      const source = this.context.createBufferSource();
      source.buffer = buffer;
      source.connect(this.gain);
      source.start(at);
      source.onended = () => this.sources.delete(source);
      this.sources.add(source);
      this.log.push({ item, at, seconds: wave.length / RATE });
      this.next = at + wave.length / RATE;
    }
    this.waiting = [];
  }
}
