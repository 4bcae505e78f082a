// In the browser's sound thread: the microphone as 16-bit samples at 24 kHz, 40 ms at a time, with their level.

const RATE = 24000;
const PIECE = 960; // samples

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(PIECE);
    this.count = 0;
    this.power = 0;
    this.step = sampleRate / RATE; // samples that come for each that goes
    this.at = 0; // where the next one lies among those that come, and from where on they are averaged
    this.sum = 0;
    this.summed = 0;
  }

  process([[wave]]) {
    for (const sample of wave ?? []) {
      this.sum += sample;
      this.summed += 1;
      this.at += 1;
      if (this.at < this.step) continue;
      this.at -= this.step;
      this.push(this.sum / this.summed);
      this.sum = this.summed = 0;
    }
    return true;
  }

  push(sample) {
    this.power += sample * sample;
    this.piece[this.count] = Math.max(-1, Math.min(1, sample)) * 32767;
    this.count += 1;
    if (this.count < PIECE) return;
    this.port.postMessage({ samples: this.piece.buffer.slice(0), level: Math.sqrt(this.power / PIECE) });
    this.count = this.power = 0;
  }
}

registerProcessor("csm-microphone", Microphone);
