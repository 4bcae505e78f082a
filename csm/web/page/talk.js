// The talk tab: the microphone to the server's Realtime websocket, answers to the loudspeaker, what was said as cards.

import { element, make, note, plural } from "./elements.js";
import { Ears, encoded, RATE } from "./ears.js";
import { decodePcm } from "./live.js";
import { Mouth } from "./mouth.js";

const STATES = {
  off: "Press Begin to talk, and allow the microphone.",
  opening: "Opening the microphone …",
  listening: "Listening. Speak, or write something.",
  hearing: "Hearing you …",
  thinking: "Thinking …",
  speaking: "Speaking. Go on talking to interrupt.",
  ready: "Write on, or press Begin to talk.",
  over: "The talk is over. Begin another, or make a script of it.",
};
const LOST = "The connection to the server broke off; what was said stands here, and a new talk can be begun.";
const LOUD = 12; // of the level, for the meter
const LOOK = 100; // ms between two looks at whether the answer is still heard
const YOU = "You";

class Turn {
  constructor(talk, item, speaker) {
    this.item = item;
    this.speaker = speaker;
    this.said = "";
    this.state = make("span", { className: "csm-state" });
    this.text = make("p", { className: "csm-talk-words" });
    const top = make("div", { className: "csm-row csm-card-top" }, make("b", { textContent: speaker }), this.state);
    this.element = make("li", { className: "csm-card" }, top, this.text);
    element("talk-cards").append(this.element);
    this.element.scrollIntoView({ block: "nearest" });
    talk.turns.push(this);
  }

  show(text, state, told = "") {
    this.said = text;
    this.text.textContent = text;
    this.element.dataset.state = state;
    this.state.textContent = told;
  }
}

export class Talk {
  constructor(page) {
    this.page = page;
    this.state = "off";
    this.turns = [];
    this.held = false;
    this.answer = null; // the item that is spoken
  }

  mount(root) {
    this.root = root;
    const on = (name, kind, work) => element(`talk-${name}`).addEventListener(kind, work);
    on("begin", "click", () => (this.talking ? this.end() : this.begin()));
    on("quiet", "click", () => this.interrupt());
    on("script", "click", () => this.keep());
    on("form", "submit", (event) => (event.preventDefault(), this.write()));
    for (const name of ["voice", "model", "prompt", "free"]) on(name, "change", () => this.agree());
    const hold = element("talk-hold");
    hold.addEventListener("pointerdown", () => this.hold(true));
    for (const kind of ["pointerup", "pointercancel", "pointerleave", "blur"]) hold.addEventListener(kind, () => this.hold(false));
    document.addEventListener("keydown", (event) => this.key(event, true));
    document.addEventListener("keyup", (event) => this.key(event, false));
    window.addEventListener("pagehide", () => this.socket?.close());
    this.offers();
    clearInterval(this.watch);
    this.watch = setInterval(() => this.look(), LOOK);
  }

  // Whether the microphone is open.
  get talking() {
    return this.ears !== undefined && this.ears !== null;
  }

  get free() {
    return element("talk-free").checked;
  }

  async offers() {
    try {
      const { missing, models, voices } = await (await fetch("csm/talk/offers")).json();
      note(element("talk-missing"), missing);
      element("talk-begin").disabled = Boolean(missing);
      element("talk-voice").replaceChildren(...voices.map((name) => make("option", { value: name, textContent: name })));
      element("talk-model").replaceChildren(
        ...Object.entries(models).map(([name, about]) => make("option", { value: name, textContent: about })),
      );
      this.root.dataset.ready = "true";
    } catch {
      note(element("talk-missing"), LOST);
    }
  }

  // The talk's beginning and end

  async begin() {
    this.enter("opening");
    try {
      await this.open();
      const ears = new Ears((samples, level) => this.heard(samples, level));
      await ears.open(this.context);
      this.ears = ears;
      this.enter("listening");
    } catch (refusal) {
      this.enter(this.connected ? "listening" : "off");
      this.tell(refusal.message, "error");
    }
    this.buttons();
  }

  end() {
    this.interrupt();
    this.ears?.close();
    this.ears = null;
    this.level(0);
    this.enter("over");
    this.buttons();
  }

  get connected() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  // Have a session with the server, a new one after a talk that is over.
  async open() {
    this.context ??= new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
    this.context.resume();
    if (this.connected && this.state !== "over" && !this.finished) return;
    this.socket?.close();
    this.mouth = new Mouth(this.context);
    this.turns = [];
    this.finished = false;
    element("talk-cards").replaceChildren();
    const address = new URL("csm/talk", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = (this.socket = new WebSocket(address));
    socket.addEventListener("message", ({ data }) => socket === this.socket && this.happened(JSON.parse(data)));
    socket.addEventListener("close", () => socket === this.socket && this.lost());
    await new Promise((resolve, reject) => {
      socket.addEventListener("open", resolve, { once: true });
      socket.addEventListener("error", () => reject(new Error(LOST)), { once: true });
    });
    this.agree();
  }

  lost() {
    this.ears?.close();
    this.ears = null;
    this.mouth?.stop();
    this.enter("off");
    this.tell(LOST, "warning");
    this.buttons();
  }

  // Bring the session to what stands in the fields.
  agree() {
    element("talk-hold").hidden = this.free;
    const session = {
      type: "realtime",
      model: element("talk-model").value,
      instructions: element("talk-prompt").value,
      audio: {
        input: { turn_detection: this.free ? { type: "semantic_vad" } : null },
        output: { voice: element("talk-voice").value },
      },
    };
    this.send({ type: "session.update", session });
  }

  send(event) {
    if (this.connected) this.socket.send(JSON.stringify(event));
  }

  // What the user says

  heard(samples, level) {
    if (!this.talking) return;
    this.level(level);
    if (this.free || this.held) this.send({ type: "input_audio_buffer.append", audio: encoded(samples) });
  }

  level(level) {
    const share = Math.min(100, Math.round(100 * Math.sqrt(level * LOUD) / Math.sqrt(LOUD)));
    const meter = element("talk-level");
    meter.firstElementChild.style.width = `${share}%`;
    meter.setAttribute("aria-valuenow", share);
  }

  // Push to talk: pressed, what is said goes to the server; let go, it is a turn.
  hold(pressed) {
    if (this.free || !this.talking || pressed === this.held) return;
    this.held = pressed;
    element("talk-hold").setAttribute("aria-pressed", pressed);
    if (pressed) {
      this.interrupt();
      this.send({ type: "input_audio_buffer.clear" });
      this.enter("hearing");
    } else {
      this.send({ type: "input_audio_buffer.commit" });
      this.enter("thinking");
    }
  }

  key(event, pressed) {
    if (!this.talking || !this.root.offsetParent) return;
    if (event.key === "Escape" && pressed) this.interrupt();
    const hold = event.target === element("talk-hold");
    const typing = event.target.closest?.("input, textarea, select, button, a, summary");
    if (event.code !== "Space" || (typing && !hold) || this.free) return;
    event.preventDefault();
    if (!event.repeat) this.hold(pressed);
  }

  async write() {
    const field = element("talk-text");
    const text = field.value.trim();
    if (!text) return;
    try {
      await this.open();
    } catch (refusal) {
      this.tell(refusal.message, "error");
      return;
    }
    field.value = "";
    this.interrupt();
    const content = [{ type: "input_text", text }];
    this.send({ type: "conversation.item.create", item: { type: "message", role: "user", content } });
    this.send({ type: "response.create" });
    this.enter("thinking");
  }

  // Silence at once; the server forgets what was not heard.
  interrupt() {
    if (!this.mouth) return;
    const item = this.answer?.item;
    const heard = item ? this.mouth.heard(item) : 0;
    const cut = item !== undefined && (this.mouth.sounding || this.answering);
    this.mouth.stop();
    if (this.answering) this.send({ type: "response.cancel" });
    if (cut) this.send({ type: "conversation.item.truncate", item_id: item, content_index: 0, audio_end_ms: heard });
    this.answer = null;
    this.answering = false;
    this.buttons();
  }

  // What the server says

  happened(event) {
    const kind = event.type;
    if (kind === "input_audio_buffer.speech_started") {
      this.interrupt();
      this.enter("hearing");
    } else if (kind === "input_audio_buffer.speech_stopped") this.enter("thinking");
    else if (kind === "input_audio_buffer.cleared") this.enter("listening");
    else if (kind === "conversation.item.added" && event.item.role === "user") {
      const text = event.item.content[0]?.text ?? event.item.content[0]?.transcript ?? "";
      new Turn(this, event.item.id, YOU).show(text, "ended");
      this.counted();
    } else if (kind === "conversation.item.input_audio_transcription.completed") {
      if (!this.free) this.send({ type: "response.create" });
    } else if (kind === "response.created") {
      this.answering = true;
      this.enter("thinking");
      this.buttons();
    } else if (kind === "response.output_item.added" && event.item.type === "message") {
      this.answer = new Turn(this, event.item.id, element("talk-voice").value);
    } else if (kind === "response.output_audio_transcript.delta") {
      const turn = this.of(event.item_id);
      turn?.show(turn.said + event.delta, "speaking", "being spoken");
      this.counted();
    } else if (kind === "response.output_audio.delta" && this.answer?.item === event.item_id) {
      this.mouth.push(event.item_id, decodePcm(event.delta));
      this.enter("speaking");
    } else if (kind === "response.done") this.done(event.response);
    else if (kind === "conversation.item.truncated") {
      const turn = this.of(event.item_id);
      turn?.show(event.csm?.transcript ?? turn.said, "stopped", "interrupted");
    } else if (kind === "csm.waiting") this.tell(`${plural(event.ahead, "other")} before you …`, "busy");
    else if (kind === "csm.kept") this.shown();
    else if (kind === "error") this.refused(event.error);
  }

  of(item) {
    return this.turns.find((turn) => turn.item === item);
  }

  done({ status, output, csm }) {
    this.answering = false;
    if (status !== "cancelled") this.mouth.finish();
    const turn = this.of(output[0]?.id);
    if (turn && turn.element.dataset.state !== "stopped") {
      const first = csm?.steps?.first_sound;
      const told = status === "cancelled" ? "interrupted" : first ? `first sound after ${first.toFixed(2)} s` : "";
      turn.show(turn.said, status === "cancelled" ? "stopped" : "ended", told);
    }
    if (csm) this.cost(csm);
    if (status === "failed") this.state = this.rest; // why is told already, and stands
    else if (!this.mouth.sounding && this.state !== "hearing") this.enter(this.rest);
    this.buttons();
  }

  // The state between turns.
  get rest() {
    return this.talking ? "listening" : "ready";
  }

  cost({ positions, most_positions: most }) {
    if (!most) return;
    const told = `${positions} of ${most} positions of the model's context are in use; when they are full, it forgets the oldest turns.`;
    const meter = make("div", { className: "csm-meter", role: "meter" }, make("span"));
    meter.firstElementChild.style.width = `${(100 * positions) / most}%`;
    meter.setAttribute("aria-label", "Positions");
    for (const [name, value] of Object.entries({ valuemin: 0, valuemax: most, valuenow: positions })) meter.setAttribute(`aria-${name}`, value);
    element("talk-budget").replaceChildren(meter, make("p", { className: "csm-hint", textContent: told }));
  }

  refused({ code, message }) {
    if (code === "response_cancel_not_active" || code === "item_not_found") return; // it was over already
    if (code === "no_words") this.enter("listening");
    this.tell(message, code === "no_words" ? "warning" : "error");
  }

  // A script in the other tab: with its sound where the server still has it, as words otherwise.
  async keep() {
    if (this.connected) {
      this.end();
      this.finished = true;
      await this.page.memory.named;
      this.send({ type: "csm.keep", token: this.page.token });
      return;
    }
    this.page.script.value = this.turns.filter(({ said }) => said).map(({ speaker, said }) => `${speaker}: ${said}`).join("\n");
    await this.page.plan(true);
    this.other();
  }

  async shown() {
    try {
      this.page.reopen(await this.page.server.view("view"));
      this.other();
    } catch (refusal) {
      this.tell(refusal.message, "error");
    }
  }

  other() {
    [...document.querySelectorAll("button[role=tab]")].find((tab) => tab.textContent.trim() === "Conversation")?.click();
  }

  // Showing

  enter(state) {
    this.state = state;
    this.tell(STATES[state], ["off", "ready", "over"].includes(state) ? "quiet" : "busy");
    element("talk-status").dataset.state = state;
  }

  tell(sentence, kind) {
    const status = element("talk-status");
    if (status.textContent !== sentence) status.textContent = sentence;
    status.dataset.kind = kind;
  }

  counted() {
    element("talk-told").textContent = `${plural(this.turns.length, "turn")} so far.`;
    element("talk-script").disabled = !this.turns.length;
  }

  buttons() {
    element("talk-begin").textContent = this.talking ? "End the talk" : "Begin to talk";
    element("talk-quiet").disabled = !(this.answering || this.mouth?.sounding);
  }

  look() {
    if (this.state !== "speaking" || this.answering || this.mouth.sounding) return;
    this.enter(this.rest);
    this.buttons();
  }
}
