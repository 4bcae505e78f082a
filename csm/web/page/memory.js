// What this browser tab remembers until it is closed: its name at the server, and what stands in the fields.

const KEY = "csm";
const ANSWER = 150; // ms that other tabs have to say that a name is theirs

function recalled() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY)) || {};
  } catch {
    return {};
  }
}

function draw() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Memory {
  constructor() {
    this.kept = recalled();
    this.token = this.kept.token || draw();
    this.copied = false; // whether this tab is a duplicate of another
    this.channel = new BroadcastChannel(KEY);
    this.channel.addEventListener("message", ({ data }) => this.#answers(data));
    this.named = this.kept.token ? this.#alone() : Promise.resolve(); // until then the name may be another tab's
  }

  // `form` is what stands in the fields.
  keep(form) {
    this.kept = { ...form, token: this.token };
    try {
      sessionStorage.setItem(KEY, JSON.stringify(this.kept));
    } catch {
      // A browser that keeps nothing forgets the script at a reload, and nothing else happens.
    }
  }

  // A duplicated tab brings along what the other one remembers, its name too: then this one draws another.
  async #alone() {
    const taken = await new Promise((resolve) => {
      this.taken = resolve;
      this.channel.postMessage({ asks: this.token });
      setTimeout(resolve, ANSWER);
    });
    if (!taken) return;
    this.token = draw();
    this.copied = true;
    this.keep(this.kept);
  }

  #answers({ asks, has }) {
    if (asks === this.token) this.channel.postMessage({ has: asks });
    if (has === this.token) this.taken?.(true);
  }
}
