// The page of the server: chat and completion, with every token explained.

import { models, stream, ServerError } from "/page/stream.js";
import { explain, TokenText } from "/page/tokens.js";

const element = (id) => document.getElementById(id);
const NUMBERS = [
  "temperature", "max_tokens", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty",
  "presence_penalty", "seed",
];
const ALTERNATIVES = 5;
const HINTS = {
  chat: "Enter sends, Shift+Enter begins a new line.",
  completion: "The model writes on from where the text ends. Ctrl+Enter sends.",
};
const EMPTY = {
  chat: "Ask something. A model that has not learned to chat answers better under “Completion”.",
  completion: "Write the beginning of a text below.",
};
const ENDS = { stop: "", length: " — cut off at max tokens", stopped: " — stopped" };

const log = element("log");
let messages = [];
let running = null;

const mode = () => document.querySelector("input[name=mode]:checked").value;

function sampling() {
  const body = { model: element("model").value || undefined };
  for (const name of NUMBERS) {
    const { value } = element(name);
    if (value !== "") body[name] = Number(value);
  }
  const stops = element("stop_strings").value.split("\n").filter(Boolean);
  if (stops.length) body.stop = stops;
  return body;
}

function request(text) {
  if (mode() === "completion") return ["/v1/completions", { ...sampling(), prompt: text, logprobs: ALTERNATIVES }];
  const system = element("system").value.trim();
  const all = [...(system ? [{ role: "system", content: system }] : []), ...messages];
  return ["/v1/chat/completions", { ...sampling(), messages: all, logprobs: true, top_logprobs: ALTERNATIVES }];
}

/** Text and tokens of a chunk of either kind. */
function parts({ delta, text, logprobs }) {
  if (!logprobs) return [delta ? delta.content ?? "" : text, []];
  if (delta) {
    const tokens = logprobs.content.map((token) => ({
      text: token.token, logprob: token.logprob, top: token.top_logprobs.map((one) => [one.token, one.logprob]),
    }));
    return [delta.content ?? "", tokens];
  }
  const tokens = logprobs.tokens.map((token, index) => ({
    text: token, logprob: logprobs.token_logprobs[index], top: Object.entries(logprobs.top_logprobs[index]),
  }));
  return [text, tokens];
}

function turn(kind) {
  const added = document.createElement("div");
  added.className = `turn ${kind}`;
  log.append(added);
  return added;
}

function scrollDown() {
  log.scrollTop = log.scrollHeight;
}

function showError(message) {
  element("error").textContent = message;
  element("error").hidden = !message;
}

function setRunning(controller) {
  running = controller;
  element("send").disabled = Boolean(controller);
  element("stop").disabled = !controller;
  log.setAttribute("aria-busy", String(Boolean(controller)));
}

/** Tokens a second since the first one, as they come. */
class Pace {
  constructor() {
    this.asked = performance.now();
    this.tokens = 0;
  }

  add(count) {
    if (!count) return;
    this.first ??= performance.now();
    this.tokens += count;
    const seconds = (performance.now() - this.first) / 1000;
    this.show(this.tokens, seconds > 0.05 ? (this.tokens - 1) / seconds : null, this.first - this.asked);
  }

  show(tokens, rate, wait) {
    const speed = rate === null ? "" : ` · ${rate.toFixed(0)} tokens/s`;
    element("speed").textContent = `${tokens} tokens${speed} · first after ${wait.toFixed(0)} ms`;
  }
}

async function write(target, path, body, controller) {
  const output = new TokenText(target);
  const pace = new Pace();
  let text = "";
  let reason = "stopped";
  try {
    for await (const chunk of stream(path, body, element("key").value, controller.signal)) {
      const [choice] = chunk.choices;
      if (!choice) continue;
      const [piece, tokens] = parts(choice);
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      text += piece;
      output.add(piece, tokens);
      pace.add(tokens.length);
      if (atEnd) scrollDown();
      if (choice.finish_reason) reason = choice.finish_reason;
      if (chunk.timings) {
        const { predicted_n: count, predicted_per_second: rate, time_to_first_token_ms: wait } = chunk.timings;
        pace.show(count, rate || null, wait);
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  } finally {
    output.flush();
  }
  return [text, reason];
}

async function send() {
  const text = element("input").value;
  const chatting = mode() === "chat";
  if (running || (chatting && !text.trim())) return;
  const controller = new AbortController();
  const conversation = messages; // another one, once the page is cleared
  setRunning(controller);
  showError("");
  element("empty").hidden = true;
  if (chatting) {
    messages.push({ role: "user", content: text });
    turn("user").textContent = text;
    element("input").value = "";
  } else {
    log.replaceChildren();
  }
  const target = turn("assistant");
  if (!chatting) {
    const prompt = document.createElement("span");
    prompt.className = "prompt";
    prompt.textContent = text;
    target.append(prompt);
  }
  scrollDown();
  try {
    const [answer, reason] = await write(target, ...request(text), controller);
    const end = document.createElement("span");
    end.className = "end";
    end.textContent = ENDS[reason];
    target.append(end);
    if (chatting) conversation.push({ role: "assistant", content: answer });
    if (!target.isConnected) return;
    element("spoken").textContent = `${answer}${ENDS[reason]}`;
    log.tabIndex = 0;
  } catch (error) {
    showError(error instanceof ServerError ? error.message : "the server cannot be reached");
    if (chatting) takeBack(conversation, target, text);
  } finally {
    setRunning(null);
  }
}

/** A question without an answer is no part of the conversation. */
function takeBack(conversation, target, text) {
  conversation.pop();
  target.previousElementSibling?.remove();
  target.remove();
  element("input").value ||= text;
  element("empty").hidden = log.childElementCount > 0;
}

function clear() {
  running?.abort();
  messages = [];
  log.replaceChildren();
  log.removeAttribute("tabindex");
  element("empty").hidden = false;
  element("speed").textContent = "";
  showError("");
}

function showMode() {
  const chosen = mode();
  document.body.classList.toggle("completing", chosen === "completion");
  element("input-label").textContent = chosen === "chat" ? "Message" : "Beginning of the text";
  element("hint").textContent = HINTS[chosen];
  element("empty").textContent = EMPTY[chosen];
  clear();
}

async function listModels() {
  try {
    const found = await models(element("key").value);
    element("model").replaceChildren(...found.map(({ id }) => new Option(id, id)));
    showError("");
  } catch (error) {
    showError(error instanceof ServerError ? error.message : "the server cannot be reached");
  }
}

element("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
element("input").addEventListener("keydown", (event) => {
  const sends = mode() === "chat" ? !event.shiftKey : event.ctrlKey || event.metaKey;
  if (event.key !== "Enter" || !sends || event.isComposing) return;
  event.preventDefault();
  send();
});
element("stop").addEventListener("click", () => running?.abort());
element("clear").addEventListener("click", clear);
element("key").addEventListener("change", listModels);
element("shade").addEventListener("change", (event) => log.classList.toggle("shaded", event.target.checked));
for (const radio of document.querySelectorAll("input[name=mode]")) radio.addEventListener("change", showMode);
element("settings").open = window.matchMedia("(min-width: 761px)").matches;
explain(log);
showMode();
listModels();
