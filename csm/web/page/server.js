// Asking the server: its addresses, its refusals, and the stream of what happens while it speaks.

export const LOST = "The connection to the server broke off; what was typed is still here, so please try again.";

export const BROKEN = "broken"; // the code of a refusal that no server gave

// What the server refused in one sentence, and at which place of the page it was given.
export class Refusal extends Error {
  constructor({ error, place, code } = {}) {
    super(error || LOST);
    this.place = place || "";
    this.code = code || (error ? "" : BROKEN); // names what has to be known again
  }
}

async function answered(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Refusal();
  }
  if (!answer.ok) throw new Refusal(await answer.json().catch(() => ({})));
  return answer;
}

// What the server says about sound that could not be played.
export async function why(source, otherwise) {
  try {
    await answered(source);
    return otherwise;
  } catch (refusal) {
    return refusal.message;
  }
}

export class Server {
  constructor(memory) {
    this.memory = memory;
  }

  // -> what the page shows, after the server did what was asked.
  async view(name, body = {}) {
    return (await this.#post(name, body)).json();
  }

  async stop() {
    await this.#post("stop", {});
  }

  async open(file) {
    return (await answered(`csm/open?token=${this.memory.token}`, { method: "POST", body: file })).json();
  }

  // -> the text of a script file, and a note of what was assumed of it.
  async read(file) {
    const name = encodeURIComponent(file.name);
    return (await answered(`csm/read?token=${this.memory.token}&name=${name}`, { method: "POST", body: file })).json();
  }

  // -> [the file, its name]
  async save(kind) {
    const answer = await answered(`csm/save/${this.memory.token}/${kind}`);
    const name = /filename="?([^";]+)/.exec(answer.headers.get("Content-Disposition") || "")?.[1];
    return [await answer.blob(), name || `conversation.${kind}`];
  }

  // Speak, and yield what happens; the last is `end`. A refusal on the way is thrown.
  async *speak(body) {
    const reader = (await this.#post("speak", body)).body.getReader();
    const decoder = new TextDecoder();
    let [text, at] = ["", ""];
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Refusal();
      text += decoder.decode(value, { stream: true });
      const lines = text.split("\n\n");
      text = lines.pop();
      for (const line of lines) {
        const event = JSON.parse(line.slice(6));
        if (event.type === "turn") at = `turn:${event.index}`;
        if (event.type === "error") throw new Refusal({ ...event, place: event.place || at });
        yield event;
        if (event.type === "end") return;
      }
    }
  }

  whole(version) {
    return `csm/whole/${this.memory.token}/${version}`;
  }

  take(key, seconds) {
    return `csm/take/${this.memory.token}/${key}?${seconds}`; // at another speed it is another sound
  }

  voice(name) {
    return `csm/voice/${this.memory.token}?name=${encodeURIComponent(name)}`;
  }

  async #post(name, body) {
    await this.memory.named;
    const asked = JSON.stringify({ ...body, token: this.memory.token });
    return answered(`csm/${name}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: asked });
  }
}
