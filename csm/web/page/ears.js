// The microphone: asked for, refused in plain words, and handed on piece by piece.

import { RATE } from "./live.js";

const REFUSED = {
  NotAllowedError: "The browser was not allowed to use the microphone: allow it for this page, then begin again; or write instead.",
  NotFoundError: "There is no microphone: connect one, then begin again; or write instead.",
  NotReadableError: "Another program holds the microphone: close it there, then begin again.",
};
const UNSAFE = "Browsers give a page the microphone only over https or on localhost: open it there; or write instead.";
const OTHERWISE = "The microphone can't be used here; write instead.";

export class Ears {
  // `heard(samples, level)` is given 16-bit samples at 24 kHz, 40 ms at a time, and how loud they are (0 to 1).
  constructor(heard) {
    this.heard = heard;
  }

  // Begin to listen; refused, an error whose message is one sentence.
  async open(context) {
    if (!navigator.mediaDevices?.getUserMedia) throw new Error(UNSAFE);
    const wanted = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    } catch (refusal) {
      throw new Error(REFUSED[refusal.name] ?? OTHERWISE);
    }
    try {
      await this.#connect(context);
    } catch {
      // Some browsers want the microphone's own rate; the worklet makes 24 kHz of any.
      this.own = new AudioContext();
      await this.#connect(this.own);
    }
  }

  close() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.node?.disconnect();
    this.own?.close();
    this.stream = this.node = this.own = null;
  }

  async #connect(context) {
    await context.audioWorklet.addModule(new URL("./microphone.js", import.meta.url));
    this.node = new AudioWorkletNode(context, "csm-microphone", { numberOfOutputs: 0 });
    this.node.port.onmessage = ({ data }) => this.heard(new Int16Array(data.samples), data.level);
    context.createMediaStreamSource(this.stream).connect(this.node);
  }
}

// 16-bit samples -> base64, as the API takes them.
export function encoded(samples) {
  const bytes = new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

export { RATE };
