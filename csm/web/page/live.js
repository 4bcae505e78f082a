// Sound while it is made: pieces put on the sound card's clock as they come. The last stop of the live sound.

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
