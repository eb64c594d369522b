package declare

import (
	"math/rand/v2"
	"strconv"
	"strings"
)

var adjectives = strings.Fields(`
	able agile alert amber ample ancient apt arctic armoured auburn autumn azure balmy bold brave breezy
	bright brisk bronze busy calm candid careful cheerful civic clear clever cobalt coral cosmic cosy
	crisp curious daring dapper deft dusky eager early earnest easy elegant emerald fair faithful famous
	fearless festive fleet fluent fond forest frank free fresh friendly frosty gallant gentle gifted glad
	golden graceful grand green handy happy hardy hazel hearty helpful honest humble icy ideal indigo
	ivory jade jolly jovial keen kind lively lofty loyal lucid lucky lunar lush maple mellow merry mighty
	mild modest mossy neat nimble noble nomad novel olive opal orderly patient pearly placid plucky
	polar polite prime proud prudent quick quiet rapid ready regal robust rosy royal ruby rustic sage
	sandy scarlet serene sharp shiny silent silver simple sleek smart smooth snowy solar solid sound
	spry stable steady stellar still stoic sturdy subtle sunny sure swift tall tame tidy timely tranquil
	trim true trusty upbeat urban valiant velvet verdant violet vivid warm wary whole wild wise witty
	woody worthy young zesty`)

var animals = strings.Fields(`
	aardvark adder albatross alpaca anole antelope armadillo auk avocet axolotl badger barbet bat bear
	beaver bee beetle bilby bison bittern boar bobcat bonito booby buffalo bunting bustard buzzard caiman
	camel capybara caracal caribou cassowary cat chameleon chamois cheetah chinchilla civet cobra cod
	colobus condor coot cormorant cougar coyote crab crane cricket crow curlew deer dingo dipper dolphin
	dormouse dove drongo duck dugong dunlin eagle echidna eel egret eland elephant elk emu ermine falcon
	ferret finch firefly flamingo fossa fox frog gannet gazelle gecko genet gerbil gibbon giraffe gnu goat
	godwit goose gopher goral grebe grouse guanaco gull halibut hamster hare harrier hawk hedgehog heron
	hippo hoopoe hornbill horse hyena hyrax ibex ibis iguana impala jackal jackdaw jaguar jay kestrel kite
	kiwi koala kudu lapwing lark lemming lemur leopard linnet lion lizard llama loris lynx macaw magpie
	manatee mandrill mantis marlin marmot marten martin meerkat merlin mink mole mongoose moose moth mule
	narwhal newt nightjar numbat nuthatch ocelot octopus okapi opossum orca oriole oryx osprey otter owl
	ox oyster pangolin panda panther parrot pelican penguin petrel pheasant pika pipit plover polecat
	puffin puma python quail quokka quoll rabbit raccoon ram raven ray robin rook saiga salmon seal serval
	shark sheep shrew shrike skink skua skunk sloth snail snipe sparrow squid squirrel stilt stoat stork
	swallow swan swift tahr takin tapir tarsier teal tern thrush tiger toad tortoise toucan trout tuna
	turtle urchin viper vole vulture wagtail walrus warbler weasel whale whimbrel wolf wombat woodcock
	wren yak zebra zorilla`)

// RandomName invents a name for a container. Every attempt after the first
// adds a number, as names run out.
func RandomName(attempt int) string {
	name := adjectives[rand.IntN(len(adjectives))] + "_" + animals[rand.IntN(len(animals))]
	if attempt > 0 {
		name += strconv.Itoa(rand.IntN(10 * attempt))
	}
	return name
}
