// OpenAI's client for JavaScript: `npm install openai && node openai_node.mjs http://127.0.0.1:7860`.
import assert from "node:assert";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2].replace(/\/$/, "")}/v1`, apiKey: "any", maxRetries: 0 });
const asked = { model: "gpt-4o-mini-tts", voice: "nova", input: "Good morning. The rain has stopped." };

const names = [];
for await (const model of client.models.list()) names.push(model.id);
assert(names.includes("tts-1"));
const mp3 = await (await client.audio.speech.create({ ...asked, speed: 1.25 })).arrayBuffer();
assert(mp3.byteLength > 5000);
let size = 0;
for await (const part of (await client.audio.speech.create({ ...asked, response_format: "pcm" })).body) size += part.length;
assert(size > 48000);
await assert.rejects(client.audio.speech.create({ ...asked, voice: "nobody" }), { status: 400, param: "voice" });
console.log("openai for JavaScript speaks;", size / 48000, "s of sound");
