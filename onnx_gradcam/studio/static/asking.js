// Requests to the studio; every address is below this page's own, which holds the token.

const at = (path) => new URL(path, import.meta.url);

/** Of a response, why it is refused, in the studio's words. */
async function refusal(response) {
  const answer = await response.json().catch(() => null);
  return new Error(answer?.error ?? `the studio answers ${response.status}; reload the page`);
}

async function asked(path, options) {
  let response;
  try {
    response = await fetch(at(path), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the studio does not answer; start it again");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

const posted = (value, signal) => ({ method: "POST", body: JSON.stringify(value), signal });

export const get = async (path) => (await asked(path)).json();
export const post = async (path, value, signal) => (await asked(path, posted(value, signal))).json();
export const blob = async (path, value) => (await asked(path, posted(value))).blob();
export const upload = async (file) =>
  (await asked(`api/images?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file })).json();

/**
 * Ask for something that takes long.
 * @param {(event: {progress: string, done: number, total: number}) => void} progress called on the way.
 * @param {AbortSignal} signal ends it.
 */
export async function stream(path, value, signal, progress = () => {}) {
  const reader = (await asked(path, posted(value, signal))).body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    const { value: part, done } = await reader.read();
    if (done) throw new Error("the studio has ended; start it again");
    const lines = (text + part).split("\n");
    text = lines.pop();
    for (const event of lines.map((line) => JSON.parse(line))) {
      if ("error" in event) throw new Error(event.error);
      if ("answer" in event) return event.answer;
      progress(event);
    }
  }
}
