// Server-sent events from a response body. EventSource cannot send a key or a body, so this reads them itself.
// Source of the format: HTML standard, section 9.2.

/** Yields the data of each event. Comments and other fields are skipped; an event cut off by the end is dropped. */
export async function* events(body) {
  let lines = [];
  for await (const line of textLines(body)) {
    if (line === "") {
      if (lines.length) yield lines.join("\n");
      lines = [];
    } else if (line.startsWith("data:")) {
      lines.push(line.slice(line.startsWith("data: ") ? 6 : 5));
    }
  }
}

async function* textLines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = parts.pop();
      yield* parts;
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading ends the request; it may have failed already
  }
}
