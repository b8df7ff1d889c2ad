/** The two small windows of the page: a question before something is lost, and the list of keys. */

const part = (id) => document.getElementById(id);

/** Ask before doing something; resolves to whether the user wants it. */
export function ask(title, text, yes) {
  const dialog = part("confirm");
  part("confirm-title").textContent = title;
  part("confirm-text").textContent = text;
  part("confirm-yes").textContent = part("confirm-yes").title = yes;
  dialog.returnValue = "";
  part("confirm-yes").onclick = () => dialog.close("yes");
  part("confirm-no").onclick = () => dialog.close("");
  dialog.showModal();
  part("confirm-no").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Fill the list of keys. @param {{title: string, rows: [string, string][]}[]} sections */
export function fillHelp(sections) {
  const body = part("help-body");
  for (const { title, rows } of sections) {
    const section = document.createElement("section");
    const heading = document.createElement("h3");
    heading.textContent = title;
    const list = document.createElement("dl");
    for (const [keys, meaning] of rows) {
      const term = document.createElement("dt");
      const key = document.createElement("kbd");
      key.textContent = keys;
      term.append(key);
      const description = document.createElement("dd");
      description.textContent = meaning;
      list.append(term, description);
    }
    section.append(heading, list);
    body.append(section);
  }
  part("help-close").onclick = () => part("help-dialog").close();
}

/** Show the list of keys. */
export function showHelp() {
  part("help-dialog").showModal();
}

/** Whether a dialog is open, which then has the keys for itself. */
export function dialogOpen() {
  return document.querySelector("dialog[open]") !== null;
}
