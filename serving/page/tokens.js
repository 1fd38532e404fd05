// Text as a row of tokens, each with what else could have stood in its place.

const card = document.getElementById("card");
const spoken = document.getElementById("spoken");

const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)} %`;
const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "␣");
const partial = (token) => /^token_id:\d+$/.test(token.text);

/** Adds text and tokens to an element. Several tokens can make one character, and text can be held back. */
export class TokenText {
  constructor(element) {
    this.element = element;
    this.waiting = []; // tokens whose text has not come yet
    this.rest = ""; // text that belongs to none of them yet
  }

  add(text, tokens) {
    this.rest += text;
    this.waiting.push(...tokens);
    while (this.rest && this.waiting.length && this.place());
    if (this.rest && !this.waiting.length) this.flush();
  }

  place() {
    const whole = this.waiting.findIndex((token) => !partial(token));
    if (whole === 0) {
      const { text } = this.waiting[0];
      if (!this.rest.startsWith(text)) return this.rest.length > text.length ? this.flush() : false;
      return this.span(text, [this.waiting.shift()]);
    }
    if (whole < 0) return false; // the parts of a character; the next token shows where it ends
    const end = this.rest.indexOf(this.waiting[whole].text);
    return end > 0 ? this.span(this.rest.slice(0, end), this.waiting.splice(0, whole)) : false;
  }

  span(text, tokens) {
    const span = document.createElement("span");
    span.className = "token";
    span.tabIndex = -1;
    span.textContent = text;
    span.tokens = tokens;
    span.style.setProperty("--probability", Math.exp(tokens.reduce((sum, token) => sum + token.logprob, 0)));
    this.element.append(span);
    this.rest = this.rest.slice(text.length);
    return true;
  }

  /** Shows all that is left, where it cannot be told apart. */
  flush() {
    if (this.rest && this.waiting.length) this.span(this.rest, this.waiting.splice(0));
    else if (this.rest) this.element.append(this.rest);
    this.rest = "";
    return false;
  }
}

function rows(token) {
  const top = token.top.some(([text]) => text === token.text) ? token.top : [...token.top, [token.text, token.logprob]];
  return [...top].sort((one, other) => other[1] - one[1]);
}

function show(span) {
  card.replaceChildren(...span.tokens.map((token) => {
    const table = document.createElement("table");
    for (const [text, logprob] of rows(token)) {
      const row = table.insertRow();
      row.className = text === token.text ? "chosen" : "";
      row.insertCell().textContent = visible(text);
      row.insertCell().textContent = percent(logprob);
    }
    return table;
  }));
  card.hidden = false;
  const place = span.getClientRects()[0];
  const left = Math.min(place.left, document.documentElement.clientWidth - card.offsetWidth - 8);
  const below = place.bottom + 6 + card.offsetHeight < window.innerHeight;
  card.style.left = `${Math.max(8, left)}px`;
  card.style.top = `${below ? place.bottom + 6 : Math.max(8, place.top - card.offsetHeight - 6)}px`;
}

function hide() {
  card.hidden = true;
}

/** Lets pointer and arrow keys ask for the probabilities of the tokens in `log`. */
export function explain(log) {
  const span = (event) => event.target.closest?.(".token");
  log.addEventListener("pointerover", (event) => (span(event) ? show(span(event)) : hide()));
  log.addEventListener("pointerleave", hide);
  log.addEventListener("scroll", hide);
  log.addEventListener("focusin", (event) => {
    if (!span(event)) return;
    show(span(event));
    spoken.textContent = span(event).tokens
      .map((token) => rows(token).map(([text, logprob]) => `${visible(text)} ${percent(logprob)}`).join(", "))
      .join("; ");
  });
  log.addEventListener("focusout", hide);
  log.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    const all = [...log.querySelectorAll(".token")];
    const now = all.indexOf(document.activeElement);
    const next = all[now < 0 ? (step > 0 ? 0 : all.length - 1) : now + step];
    next?.focus();
    event.preventDefault();
  });
}
