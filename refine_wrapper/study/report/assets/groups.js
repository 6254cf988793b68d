"use strict";
// The browser of groups. Texts of the run reach the page through textContent only.
(() => {
  const { data, element, byId } = report;
  const list = byId("list");
  if (!list) return;
  const PER_PAGE = 20;
  const ACTIONS = { refine: "refined", plain: "plain", skip: "skipped" };
  const texts = new Map(); // what a group is searched in, made when it is first searched
  let matching = [];
  let page = 0;

  function options() {
    const select = byId("filter-cell");
    const add = (title, entries) => {
      const group = document.createElement("optgroup");
      group.label = title;
      for (const [value, name] of entries) {
        const option = element("option", "", name);
        option.value = value;
        group.append(option);
      }
      select.append(group);
    };
    const names = [...new Set(data.cells.map(settingOf))];
    if (names.length > 1) add("Settings", names.map((name) => [`setting ${name}`, name]));
    if (data.cells.length > 1) add("Cells", data.cells.map((cell, at) => [`cell ${at}`, cell.name]));
    select.closest("label").hidden = data.cells.length < 2;
  }

  function settingOf(cell) {
    return [cell.task, cell.setting].filter(Boolean).join(", ") || cell.name;
  }

  function searched(group) {
    if (!texts.has(group)) {
      const parts = [group.id, group.question, ...group.samples.map((sample) => sample.text)];
      texts.set(group, parts.filter(Boolean).join("\n").toLowerCase());
    }
    return texts.get(group);
  }

  function filter() {
    const cell = byId("filter-cell").value;
    const from = byId("filter-from").valueAsNumber;
    const to = byId("filter-to").valueAsNumber;
    const draft = byId("filter-draft").value;
    const action = byId("filter-action").value;
    const mixed = byId("filter-mixed").checked;
    const text = byId("filter-text").value.trim().toLowerCase();
    matching = data.groups.filter((group) => {
      if (cell.startsWith("cell ") && group.cell !== Number(cell.slice(5))) return false;
      if (cell.startsWith("setting ") && settingOf(data.cells[group.cell]) !== cell.slice(8)) return false;
      if (!Number.isNaN(from) && !(group.step !== null && group.step >= from)) return false;
      if (!Number.isNaN(to) && !(group.step !== null && group.step <= to)) return false;
      if (draft && group.at_max !== (draft === "max")) return false;
      if (action && group.action !== action) return false;
      if (mixed && !group.mixed) return false;
      return !text || searched(group).includes(text);
    });
    page = 0;
    show();
  }

  function show() {
    const pages = Math.max(1, Math.ceil(matching.length / PER_PAGE));
    list.replaceChildren(...matching.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(groupElement));
    byId("count").textContent = `${matching.length.toLocaleString("en")} of ${data.groups.length.toLocaleString("en")} groups match.`;
    byId("page").textContent = `Page ${page + 1} of ${pages}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page >= pages - 1;
  }

  function turn(by) {
    page += by;
    show();
    byId("count").scrollIntoView({ block: "nearest" });
  }

  const written = (reward) =>
    reward === null || reward === undefined ? "–" : String(Math.round(reward * 1000) / 1000);

  const ofRound = (group, number) => group.samples.flatMap((sample, at) => (sample.round === number ? [at] : []));

  // Whether a later round shows this sample in its prompt.
  const isShown = (group, at) => group.rounds.some((round) => round.show === at);

  function rewardElement(sample, group, chosen) {
    const none = sample.reward === null || sample.reward === undefined;
    const top = !none && sample.reward >= data.cells[group.cell].max_reward;
    const made = element("span", `reward${none ? " none" : ""}${top ? " top" : ""}${chosen ? " chosen" : ""}`, written(sample.reward));
    if (chosen) made.title = "shown in a later prompt";
    return made;
  }

  function groupElement(group) {
    const cell = data.cells[group.cell];
    const made = element("details", "group");
    made.dataset.id = group.id;
    const summary = element("summary");
    const what = element("span", "what");
    what.append(element("span", "", (group.question ?? group.id).replace(/\s+/g, " ").slice(0, 200)));
    const where = [settingOf(cell), cell.seed === null ? "" : `seed ${cell.seed}`].filter(Boolean).join(", ");
    what.append(element("br"), element("span", "where", where));
    const rewards = element("span", "rewards");
    if (group.action !== "refine") rewards.append(element("span", "tag strong", ACTIONS[group.action] ?? group.action));
    if (group.replaced) rewards.append(element("span", "tag strong", "replaced"));
    group.rounds.forEach((round, number) => {
      if (number) rewards.append(element("span", "arrow", "→"));
      ofRound(group, number).forEach((at) => rewards.append(rewardElement(group.samples[at], group, isShown(group, at))));
    });
    summary.append(element("span", "step", group.step === null ? "–" : `step ${group.step}`), what, rewards);
    made.append(summary);
    made.addEventListener("toggle", () => {
      if (made.open && made.children.length === 1) made.append(inside(group));
    });
    return made;
  }

  function inside(group) {
    const made = element("div", "inside");
    const add = (title, content) => made.append(element("h4", "", title), content);
    if (group.question !== null) add("Question", element("pre", "question", group.question));
    group.rounds.forEach((round, number) => {
      add(roundTitle(group, round, number), samples(group, ofRound(group, number)));
      if (round.prompt !== null) {
        const prompt = element("details");
        prompt.append(element("summary", "note", "The prompt that they answer"), element("pre", "question", round.prompt));
        made.append(prompt);
      }
    });
    const notes = [];
    if (group.cause) notes.push(`Not refined: ${group.cause}.`);
    if (group.reason && group.reason !== group.cause) notes.push(`Why: ${group.reason}.`);
    if (group.replaced) notes.push("Dynamic sampling put another group in its place: sampled, not trained.");
    if (notes.length) made.append(element("p", "note", notes.join(" ")));
    return made;
  }

  // What a round was sampled on, and what for; then what of it was shown next.
  function roundTitle(group, round, number) {
    const context = round.use === "context";
    const next = group.rounds.slice(number + 1).find((later) => ofRound(group, number).includes(later.show));
    const trained = group.trained ? "trained" : "not trained";
    let title;
    if (round.show !== null) {
      const what = { context: "context only", fill: trained, take: "right ones take a slot" }[round.use];
      title = `Refinements, with number ${round.show + 1} in the prompt: ${what}`;
    } else if (round.use === "take") title = "More answers to the question: right ones take a slot";
    else if (context) title = "Drafts: context only";
    else title = `Answers to the question: ${trained}`;
    if (round.shortened) title += "; what is shown was shortened to fit";
    if (round.reason) title += `; ${round.reason}`;
    if (next) {
      const last = group.rounds.filter((later) => later.show !== null).pop(); // what `tied` is counted for
      const equals = next === last && group.tied > 1 ? `, one of ${group.tied} equals` : "";
      title += `; number ${next.show + 1} chosen by ${group.selector}${equals}`;
    }
    return title;
  }

  function samples(group, places) {
    const made = element("div", "samples");
    places.forEach((at) => {
      const sample = group.samples[at];
      const round = group.rounds[sample.round];
      const shown = isShown(group, at);
      const card = element("div", `sample${shown ? " chosen" : ""}`);
      const head = element("div", "head");
      head.append(element("span", "", `${at + 1}`), rewardElement(sample, group, false));
      if (typeof sample.tokens === "number") head.append(element("span", "", `${sample.tokens} tokens`));
      if (shown) head.append(element("span", "tag strong", "in the prompt"));
      if (sample.on_question) head.append(element("span", "tag strong", "trained as an answer to the question"));
      if (round.use === "take" && sample.slot !== null) head.append(element("span", "tag", `takes slot ${sample.slot + 1}`));
      if (round.use === "fill" && sample.slot === null) head.append(element("span", "tag", "lost its slot: not trained"));
      if (sample.held === false) head.append(element("span", "tag", "its prompt did not hold it"));
      if (sample.copy) head.append(element("span", "tag", "repeats what it was shown"));
      if (!sample.finished) head.append(element("span", "tag", "cut at the length limit"));
      card.append(head);
      if (sample.problem) card.append(element("p", "problem", sample.problem));
      if (sample.text !== null) card.append(element("pre", "", sample.text));
      made.append(card);
    });
    return made;
  }

  const form = byId("filters");
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  options();
  filter();
})();
