"use strict";
// What is shown: the data of the page, the choices above the curves, and who must know when one changes.
const report = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const listeners = [];
  const byId = (id) => document.getElementById(id);
  const state = { task: "", axis: "step", smooth: true, seeds: true, hidden: new Set() };

  const changed = () => listeners.forEach((listener) => listener());

  // Everything from the data goes through here, as text: it is never parsed as HTML.
  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined && text !== null) made.textContent = text;
    return made;
  }

  function stroke(setting) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    svg.setAttribute("viewBox", "0 0 26 8");
    svg.setAttribute("aria-hidden", "true");
    for (const [name, value] of [["x1", 1], ["x2", 25], ["y1", 4], ["y2", 4]]) line.setAttribute(name, value);
    if (setting.plain) line.setAttribute("stroke-dasharray", "5 3");
    line.setAttribute("class", `k${setting.colour}`);
    svg.append(line);
    return svg;
  }

  function legend() {
    if (data.settings.length < 2) return;
    const place = byId("legend");
    for (const setting of data.settings) {
      const button = element("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.append(stroke(setting), element("span", "", setting.name));
      button.addEventListener("click", () => {
        const hide = !state.hidden.has(setting.name);
        if (hide) state.hidden.add(setting.name);
        else state.hidden.delete(setting.name);
        button.setAttribute("aria-pressed", String(!hide));
        changed();
      });
      place.append(button);
    }
  }

  if (byId("controls")) {
    const task = byId("task");
    const read = () => {
      if (task) state.task = task.value;
      state.axis = document.querySelector("#axis input:checked").value;
      state.smooth = byId("smooth").checked;
      state.seeds = byId("seeds").checked;
    };
    // A browser keeps choices over a reload: what is drawn must be what they say.
    if (!task && data.charts.length && data.charts[0].curves.length) state.task = data.charts[0].curves[0].task;
    read();
    legend();
    byId("controls").addEventListener("change", () => { read(); changed(); });
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
  }
  return { data, state, element, byId, onChange: (listener) => listeners.push(listener) };
})();
