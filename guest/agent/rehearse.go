package agent

import (
	"runtime"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	api "manis/api/agent"
)

// freezeWord on the kernel's command line says that this machine is going to be frozen
// as soon as the agent listens, and that clones will go on from it.
const freezeWord = "manis.freeze"

func toBeFrozen() bool {
	line, err := readFile("/proc/cmdline", 4096)
	return err == nil && slices.Contains(strings.Fields(string(line)), freezeWord)
}

// rehearse does now, for all clones, what each of them would do first. It must not
// touch anything that has to be different in every clone: no randomness is drawn and kept, no
// time is looked at.
func rehearse() {
	// The tables by which messages are read and written are made on first use.
	messages := api.File_api_agent_agent_proto.Messages()
	for i := range messages.Len() {
		kind, err := protoregistry.GlobalTypes.FindMessageByName(messages.Get(i).FullName())
		if err != nil {
			continue
		}
		m := kind.New()
		fill(m)
		b, err := proto.Marshal(m.Interface())
		if err == nil {
			proto.Unmarshal(b, kind.New().Interface())
		}
	}
	runtime.GC()
}

// fill gives every field of a message one value that is not its default.
func fill(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		switch f := fields.Get(i); {
		case f.IsMap():
			if f.MapKey().Kind() == protoreflect.StringKind && f.MapValue().Kind() == protoreflect.StringKind {
				m.Mutable(f).Map().Set(protoreflect.ValueOfString("k").MapKey(), protoreflect.ValueOfString("v"))
			}
		case f.Kind() == protoreflect.MessageKind && f.IsList():
			m.Mutable(f).List().AppendMutable()
		case f.Kind() == protoreflect.MessageKind:
			m.Mutable(f)
		case f.Kind() == protoreflect.StringKind && f.IsList():
			m.Mutable(f).List().Append(protoreflect.ValueOfString("v"))
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, protoreflect.ValueOfString("v"))
		case f.Kind() == protoreflect.BytesKind && !f.IsList():
			m.Set(f, protoreflect.ValueOfBytes([]byte{1}))
		case f.Kind() == protoreflect.BoolKind && !f.IsList():
			m.Set(f, protoreflect.ValueOfBool(true))
		case f.Kind() == protoreflect.Uint64Kind && !f.IsList():
			m.Set(f, protoreflect.ValueOfUint64(1))
		case f.Kind() == protoreflect.Uint32Kind && !f.IsList():
			m.Set(f, protoreflect.ValueOfUint32(1))
		case f.Kind() == protoreflect.Int64Kind && !f.IsList():
			m.Set(f, protoreflect.ValueOfInt64(1))
		}
	}
}
