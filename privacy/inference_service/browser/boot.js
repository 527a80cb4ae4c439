/**
 * Starts the page from modules whose bytes are those that the page names: each is fetched with its
 * hash and imported from memory, in the page and in its worker. So whoever knows the hash of the
 * page knows every script that runs.
 */

/** @type {{modules: [string, string][], model: object}} */
const page = JSON.parse(document.getElementById("page-data")?.textContent ?? "{}");
/** @type {Map<string, string>} */
const blobs = new Map();

try {
  const texts = await Promise.all(
    page.modules.map(async ([path, integrity]) => {
      const response = await fetch(new URL(path, import.meta.url), { integrity });
      if (!response.ok) throw new Error(`${path} is not there`);
      return response.text();
    }),
  );
  // Each module comes after those that it imports.
  page.modules.forEach(([path], n) => {
    const text = texts[n].replace(/(from "|import\(")(\.[^"]+)"/g, (_, begin, other) => {
      const { pathname } = new URL(other, `http://page/${path}`);
      return `${begin}${blobs.get(pathname.slice(1))}"`;
    });
    blobs.set(path, URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
  });
  const { start } = await import(/** @type {string} */ (blobs.get("page.js")));
  start(page.model, blobs.get("worker.js"));
} catch {
  const status = document.getElementById("status");
  if (status) {
    status.textContent =
      "This page does not start: a script could not be loaded, or is not the one that the page " +
      "names. Reload it; if that does not help, tell whoever gave you the link.";
  }
}
