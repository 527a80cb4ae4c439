/**
 * Starts the page from modules whose bytes are those that the page names: each is fetched with its
 * hash, and they run from memory, in the page and in its worker. So whoever knows the hash of the
 * page knows every script that runs. They are joined into one script each: a file on a disk has no
 * origin, and a worker of such a page imports nothing.
 */

/** @type {{modules: [string, string][], model: object}} */
const page = JSON.parse(document.getElementById("page-data")?.textContent ?? "{}");
const WORKER = "worker.js";

/** A module as a function that gives its exports. @param {string} path @param {string} text */
function joined(path, text) {
  /** @type {string[]} */
  const names = [];
  const body = text
    .replace(/^import (\{[^}]*\}) from "(.+)";$/gm, (_, taken, from) => {
      const { pathname } = new URL(from, `http://page/${path}`);
      return `const ${taken} = modules["${pathname.slice(1)}"];`;
    })
    .replace(/^export (?=(?:async )?(?:class|const|function)\*? (\w+))/gm, (_, name) => {
      names.push(name);
      return "";
    });
  return `modules["${path}"] = (() => {\n${body}\nreturn { ${names} };\n})();\n`;
}

try {
  const texts = await Promise.all(
    page.modules.map(async ([path, integrity]) => {
      // In a page of one file the module stands in it, as text.
      const text = document.getElementById(path)?.textContent;
      const inside = text && URL.createObjectURL(new Blob([text]));
      const response = await fetch(inside || new URL(path, import.meta.url), { integrity });
      if (!response.ok) throw new Error(`${path} is not there`);
      return joined(path, await response.text());
    }),
  );
  /** @param {string[]} parts */
  const script = (parts) => {
    const all = ['"use strict";\nconst modules = {};\n', ...parts];
    return URL.createObjectURL(new Blob(all, { type: "text/javascript" }));
  };
  // Each module comes after those that it imports; the page's own are behind the worker.
  const own = page.modules.findIndex(([path]) => path === WORKER);
  const worker = script(texts.slice(0, own + 1));
  texts.splice(own, 1, "");
  const [input] = /** @type {[string, string]} */ (page.modules.at(-1));
  const { start, Input } = await import(
    script([
      ...texts,
      `export const { start } = modules["page.js"], { Input } = modules["${input}"];`,
    ])
  );
  start(page.model, () => new Worker(worker), Input);
} catch {
  const status = document.getElementById("status");
  if (status) {
    status.textContent =
      "This page does not start: a script could not be loaded, or is not the one that the page " +
      "names. Reload it; if that does not help, tell whoever gave you the link.";
  }
}
