// What is heard on the page: the sound of a run while it is made, or a finished clip, never both.

import { LivePlayer, RATE } from "./live.js";
import { Deck } from "./player.js";

export class Sound {
  constructor() {
    this.deck = new Deck();
    this.live = null; // of the last run, unless it was silenced
    this.context = null;
  }

  // Get ready for live sound; browsers only let it run from a click on.
  listen() {
    try {
      this.context ??= new AudioContext({ sampleRate: RATE, latencyHint: "playback" });
      this.context.resume();
      this.live = new LivePlayer(this.context);
    } catch {
      this.live = null; // no sound while it is made; the players still work
    }
  }

  silence() {
    this.live?.stop();
    this.live = null;
    this.deck.pause();
  }

  // The turn that is heard live, or null.
  heard() {
    return this.live?.sounding ? this.live.heard() : null;
  }

  // Seconds until the first sample of the live sound is heard; null while there is none.
  untilFirst() {
    const first = this.live?.log[0];
    return first ? Math.max(0, first.at / RATE - this.context.currentTime) : null;
  }
}
