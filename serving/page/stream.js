// One request and its server-sent events.

/** What the server answered instead of what was asked for. */
export class ServerError extends Error {}

function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function fail(response) {
  const body = await response.json().catch(() => null);
  throw new ServerError(body?.error?.message ?? `the server answered with status ${response.status}`);
}

export async function models(key) {
  const response = await fetch("/v1/models", { headers: headers(key) });
  if (!response.ok) await fail(response);
  return (await response.json()).data;
}

/** Yields the chunks of a streamed answer; `signal` ends it. */
export async function* stream(path, body, key, signal) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers(key) },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!response.ok) await fail(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ServerError("the connection ended before the answer did");
    buffer += value;
    const events = buffer.split("\n\n");
    buffer = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(chunk.error.message);
      yield chunk;
    }
  }
}
