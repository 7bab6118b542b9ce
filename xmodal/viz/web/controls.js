// Native inputs bound to the widget's traits, both ways: what the pointer, the keyboard or Python changes is one state.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

class Controls {
  constructor(model) {
    this.model = model;
    this.inputs = {};
    this.bound = []; // [event, listener], for destroy
  }

  set(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  watch(name, listener) {
    this.model.on(`change:${name}`, listener);
    this.bound.push([`change:${name}`, listener]);
  }

  bind(name, listener) {
    this.watch(name, listener);
    listener();
  }

  slider(name, label, { min, max, step, tell = (value) => value, title = "", also = () => {} }) {
    const input = element("input", { type: "range", min, max, step, title });
    input.dataset.control = name;
    const told = element("output");
    input.addEventListener("input", () => { also(); this.set(name, Number(input.value)); });
    this.bind(name, () => {
      input.value = this.model.get(name);
      told.textContent = tell(this.model.get(name));
      input.setAttribute("aria-valuetext", told.textContent);
    });
    return element("label", { title }, element("span", {}, label), input, told);
  }

  choice(name, label, options, title = "") { // options: [value, text]
    const input = element("select", { title });
    this.inputs[name] = input;
    input.dataset.control = name;
    input.append(...options.map(([value, text]) => element("option", { value }, text)));
    input.addEventListener("change", () => this.set(name, input.value));
    this.bind(name, () => { input.value = this.model.get(name); });
    return element("label", { title }, element("span", {}, label), input);
  }

  options(name, values, chosen) { // other options for a choice that exists
    const input = this.inputs[name];
    if (input.dataset.values !== values.join("/")) {
      input.dataset.values = values.join("/");
      input.replaceChildren(...values.map((value) => element("option", { value }, value)));
    }
    input.value = chosen;
    input.disabled = !values.length;
  }

  toggle(name, label, title = "") {
    const input = element("button", { type: "button", title }, label);
    input.dataset.control = name;
    input.addEventListener("click", () => this.set(name, !this.model.get(name)));
    this.bind(name, () => input.setAttribute("aria-pressed", String(this.model.get(name))));
    return input;
  }

  button(name, label, title, act) {
    const input = element("button", { type: "button", title, "aria-label": title }, label);
    input.dataset.control = name;
    input.addEventListener("click", act);
    return input;
  }

  destroy() {
    for (const [event, listener] of this.bound) this.model.off(event, listener);
  }
}
