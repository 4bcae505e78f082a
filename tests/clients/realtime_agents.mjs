// OpenAI's agents in JavaScript: `npm install @openai/agents-realtime`, then with the server's address and a recording
// of a question, mono at 24 kHz: `node realtime_agents.mjs http://127.0.0.1:7860 question.wav`.
import assert from "node:assert";
import { readFileSync } from "node:fs";
import { setTimeout } from "node:timers/promises";
import { RealtimeAgent, RealtimeSession } from "@openai/agents-realtime";

const [, , address, recording] = process.argv;
const agent = new RealtimeAgent({ name: "Companion", instructions: "Answer in one short sentence." });
const session = new RealtimeSession(agent, { transport: "websocket", model: "smollm2-135m" });
let bytes = 0;
const kinds = new Set();
const failures = [];
session.on("audio", (event) => (bytes += event.data.byteLength));
session.on("error", (event) => failures.push(JSON.stringify(event.error?.error?.message ?? event.error?.message ?? event.error)));
session.transport.on("*", (event) => kinds.add(event.type));
const url = `${address.replace(/^http/, "ws").replace(/\/$/, "")}/v1/realtime`;
await session.connect({ apiKey: "any", url });

async function answered() {
  kinds.delete("response.done");
  for (let waited = 0; !kinds.has("response.done"); waited++) {
    assert(waited < 600 && !failures.length, `no answer; ${failures} ${[...kinds]}`);
    await setTimeout(100);
  }
}

session.sendMessage("Good morning! How are you?");
await answered();
assert(bytes > 24000);
const written = bytes;
const sound = readFileSync(recording).subarray(44);
for (let at = 0; at < sound.length + 96000; at += 1920) {
  const piece = Buffer.alloc(1920);
  if (at < sound.length) sound.copy(piece, 0, at, Math.min(at + 1920, sound.length));
  session.sendAudio(piece.buffer.slice(piece.byteOffset, piece.byteOffset + 1920));
  await setTimeout(38);
}
if (!kinds.has("response.done")) await answered();
assert(bytes > written && kinds.has("conversation.item.input_audio_transcription.completed"));
const heard = session.history.filter((item) => item.type === "message").map((item) => item.content[0]?.transcript ?? item.content[0]?.text);
console.log("agents-realtime talks;", bytes / 48000, "s of sound;", JSON.stringify(heard));
session.close();
process.exit(0);
